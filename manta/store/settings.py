"""Settings of a shard's store: sizes and times that hold from one machine to a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ShardSettings:
    """How one shard keeps its state.

    ``flush_bytes`` and ``flush_after_s`` say when the journal's tail becomes files; an idle shard
    writes nothing. ``merge_files`` files of one size class become one of the next.
    """

    memory_limit_mb: int = 4096
    flush_bytes: int = 64 << 20
    flush_after_s: float = 60.0
    merge_files: int = 8
    live_files_max: int = 200
    month_file_bytes: int = 64 << 20
    month_file_bytes_max: int = 256 << 20
    maintenance_memory_mb: int = 512
    hot_event_days: int = 400
    final_ledger_days: int = 90
    event_days: int = 0  # older events leave the lake altogether; 0: they stay for ever
    anonymous_days: int = 400  # anonymous people of whom nothing was heard for so long go
    quarantine_days: int = 30
    # What decisions read as `Context.settings`: the workspace's zone, limits and the like.
    domain: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("memory_limit_mb", "flush_bytes", "live_files_max", "month_file_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.merge_files < 2:
            raise ValueError(f"merge_files is {self.merge_files}; it must be at least 2")
        if self.flush_after_s <= 0:
            raise ValueError(f"flush_after_s is {self.flush_after_s}; it must be above 0")
