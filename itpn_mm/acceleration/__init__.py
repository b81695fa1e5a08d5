"""Faster backbones for dense tasks: token migration and token gathering (paper, Section 4)."""

from .acceleration import Departure
from .settings import SETTINGS
from .token_migration import TokenMigration, trace_migration

__all__ = ['SETTINGS', 'Departure', 'TokenMigration', 'trace_migration']
