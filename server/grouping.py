"""Creating groups, finding them by name, opening them, and changing their settings."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from rockbed.config import GROUPS, NAMED_GROUPS, GroupConfig
from rockbed.errors import GroupConflict
from rockbed.server import tiers
from rockbed.server.fitting import called, differences, must_fit
from rockbed.server.group import Group
from rockbed.server.rules import rules_of
from rockbed.storage.entries import Kind, group_parts

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def open_group(
    engine: "Engine",
    config: GroupConfig,
    *,
    by_name: bool = False,
    used: bool = True,
    may: Callable[[GroupConfig | None, GroupConfig], None] = lambda stored, asked: None,
) -> tuple[Group, bool]:
    """Create the group, or open it as it is stored; settings that may change are changed, durably.

    by_name: the group is the one of the config's name, whatever its number; a new one gets a number that is free.
    used: False where nobody works with the group yet: whoever opens it first may still change its settings.
    may: called with the settings that are stored, None for a new group, and those asked for; raises to refuse.
    A config without a name leaves the group its own. Returns the group, and whether it was created.

    Raises GroupConflict, DimMismatch where the stored rows do not fit the config, GroupConflict where the group is
    open with another one, or the name is another group's.
    """
    engine.check_open()
    if engine.dropped and (by_name or config.group in engine.dropped):
        engine.flush()  # see `dropping`: rows of the new group must not reach rows/ before
    with tiers.changing(engine), engine.groups_lock:
        config = replace(config, group=_number_for(engine, config)) if by_name else config
        group = engine.groups.get(config.group)
        if group is None:
            _must_be_free(engine, config)
            may(None, config)
            group = _create(engine, config)
            if used:
                _use(engine, group)
            return group, True
        config = _keeping_its_name(group, config)
        may(group.config, config)
        must_fit(group.config, config)
        if group.config != config:
            if config.group in engine.opened_here:
                raise GroupConflict(
                    f"{called(config)} is open in this storage with other settings (open / asked for: "
                    f"{differences(group.config, config)}): open the group "
                    "as it is and change it for everyone with its `alter`, or close the storage first"
                )
            _change(engine, group, config)
        if used:
            _use(engine, group)
        return group, False


def _use(engine: "Engine", group: Group) -> None:
    engine.opened_here.add(group.number)
    tiers.attach(engine, group)


def alter_group(engine: "Engine", config: GroupConfig, generation: int = 0) -> Group:
    """Change the settings of a group that may change, durably, also while it is in use. generation: as of Engine.group.

    Raises UnknownGroup; DimMismatch and GroupConflict where others differ.
    """
    engine.check_open()
    with tiers.changing(engine), engine.groups_lock:
        group = engine.group(config.group, generation)
        config = _keeping_its_name(group, config)
        must_fit(group.config, config)
        if group.config != config:
            _change(engine, group, config)
        return group


def _number_for(engine: "Engine", config: GroupConfig) -> int:
    """The number of the group of this name, or for a new one the first that is free from where the name points to: the
    same in every store that has no other name there, and initial rows with it."""
    named = _named(engine, config.name)
    if named is not None:
        return named.number
    wanted = NAMED_GROUPS + zlib.crc32((config.name or "").encode()) % (GROUPS - NAMED_GROUPS)
    for number in chain(range(wanted, GROUPS), range(NAMED_GROUPS, wanted)):
        if number not in engine.groups and number not in engine.dropped:
            return number
    raise GroupConflict(
        f"{config.name!r} needs a group, and all numbers from {NAMED_GROUPS} to {GROUPS - 1} are taken: drop a group"
    )


def _named(engine: "Engine", name: str | None) -> Group | None:
    if name is None:
        return None
    return next((group for group in list(engine.groups.values()) if group.config.name == name), None)


def _must_be_free(engine: "Engine", config: GroupConfig) -> None:
    other = _named(engine, config.name)
    if other is not None:
        raise GroupConflict(
            f"the name {config.name!r} is group {other.number}'s, group {config.group} cannot have it too: open it by "
            "its name, or give another"
        )


def _keeping_its_name(group: Group, config: GroupConfig) -> GroupConfig:
    stored = group.config
    if config.name is None:
        config = replace(config, name=stored.name)
    return config if config.variable is not None else replace(config, variable=stored.variable)


def _change(engine: "Engine", group: Group, config: GroupConfig) -> None:
    engine.must_be_writable("change the settings of a group")
    group.rehearse(config)
    tiers.detach(engine, group)  # what a device does with rows follows from the settings
    try:
        with group.lock:
            lsn = engine.journal.append(Kind.GROUP, engine.now_ms(), group_parts(config.to_bytes()))
            with engine.must_succeed(lsn):
                group.change(config)
    finally:
        tiers.attach(engine, group)
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
            group.generation = engine.journal.append(Kind.GROUP, engine.now_ms(), group_parts(config.to_bytes()))
        except BaseException:
            group.dropped = True
            del engine.groups[config.group]
            raise
    return group
