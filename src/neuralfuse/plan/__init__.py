"""The cheapest voltage and protection that are accurate enough, found by measuring."""

from neuralfuse.plan.planner import Hardware, Option, Planner, cheapest
from neuralfuse.plan.record import make_plan, plan_text, usual_voltages

__all__ = ["Hardware", "Option", "Planner", "cheapest", "make_plan", "plan_text", "usual_voltages"]
