"""Which voltage, which generator: the cheapest way to run that is accurate enough, found by measuring."""

from neuralfuse.plan.planner import Hardware, Option, Planner, cheapest
from neuralfuse.plan.record import make_plan, plan_text, usual_voltages

__all__ = ["Hardware", "Option", "Planner", "cheapest", "make_plan", "plan_text", "usual_voltages"]
