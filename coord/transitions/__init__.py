"""Every change of state: ``Scripts`` calls them, the other names are what it takes and answers."""

from coord.transitions.batches import (
    Arg,
    Beat,
    Burial,
    Call,
    CancelRequest,
    Change,
    Delivery,
    Departure,
    Expiry,
    LeaseList,
    LeaseLoss,
    Loss,
    Placement,
    Registration,
    Report,
    Submission,
    TaskBatch,
)
from coord.transitions.scripts import Scripts

__all__ = [
    "Arg",
    "Beat",
    "Burial",
    "Call",
    "CancelRequest",
    "Change",
    "Delivery",
    "Departure",
    "Expiry",
    "LeaseList",
    "LeaseLoss",
    "Loss",
    "Placement",
    "Registration",
    "Report",
    "Scripts",
    "Submission",
    "TaskBatch",
]
