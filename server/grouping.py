"""Creating groups, opening them, and changing their settings."""

from typing import TYPE_CHECKING

from rockbed.config import GroupConfig
from rockbed.errors import GroupConflict
from rockbed.server.fitting import differences, must_fit
from rockbed.server.group import Group
from rockbed.server.rules import rules_of
from rockbed.storage.entries import Kind, group_parts

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def open_group(engine: "Engine", config: GroupConfig) -> Group:
    """Create the group, or open it as it is stored; settings that may change are changed, durably.

    Raises GroupConflict, DimMismatch where the stored rows do not fit the config, GroupConflict where the group is
    open with another one.
    """
    engine.check_open()
    if config.group in engine.dropped:
        engine.flush()  # see `dropping`: rows of the new group must not reach rows/ before
    with engine.groups_lock:
        group = engine.groups.get(config.group)
        if group is None:
            return _create(engine, config)
        must_fit(group.config, config)
        if group.config != config:
            if config.group in engine.opened_here:
                raise GroupConflict(
                    f"group {config.group} is open in this storage with other settings (open / asked for: "
                    f"{differences(group.config, config)}): open the group "
                    "as it is and change it for everyone with its `alter`, or close the storage first"
                )
            _change(engine, group, config)
        engine.opened_here.add(config.group)
        return group


def alter_group(engine: "Engine", config: GroupConfig) -> Group:
    """Change the settings of a group that may change, durably, also while it is in use.

    Raises UnknownGroup; DimMismatch and GroupConflict where others differ.
    """
    engine.check_open()
    with engine.groups_lock:
        group = engine.group(config.group)
        must_fit(group.config, config)
        if group.config != config:
            _change(engine, group, config)
        return group


def _change(engine: "Engine", group: Group, config: GroupConfig) -> None:
    engine.must_be_writable("change the settings of a group")
    group.rehearse(config)
    with group.lock:
        lsn = engine.journal.append(Kind.GROUP, engine.now_ms(), group_parts(config.to_bytes()))
        with engine.must_succeed(lsn):
            group.change(config)
    if group.lives_longer:
        engine.hold_compaction(True)


def _create(engine: "Engine", config: GroupConfig) -> Group:
    rules_of(config)
    engine.must_be_writable("create a group")
    group = Group(config, engine, on_disk=False)
    with group.lock:  # whoever finds the group before its entry is written waits: its own entries come after
        # known before its entry is written: a flush between the two would trim the entry, its catalog lacking the group
        engine.groups[config.group] = group
        try:
            engine.journal.append(Kind.GROUP, engine.now_ms(), group_parts(config.to_bytes()))
        except BaseException:
            group.dropped = True
            del engine.groups[config.group]
            raise
    engine.opened_here.add(config.group)
    return group
