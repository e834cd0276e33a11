"""Annotations and decisions, append-only, in one database; the only SQL of the project."""

from src.store.annotations import Answered, Claim, Key, Standing, Store
from src.store.decisions import DecisionLog, Logged
from src.store.tables import SCHEMA_VERSION

__all__ = ["SCHEMA_VERSION", "Answered", "Claim", "DecisionLog", "Key", "Logged", "Standing", "Store"]
