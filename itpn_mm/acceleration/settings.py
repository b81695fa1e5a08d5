"""Arguments of :class:`TokenMigration` by name: the rows of Figure 5 and Table VII."""

SETTINGS: dict[str, dict] = {
    'dense': dict(),
    'migration-10': dict(ratio=0.1),
    'migration-20': dict(ratio=0.2),
    'migration-30': dict(ratio=0.3),
    'migration-40': dict(ratio=0.4),
    'windows': dict(window_attention=True),
    'windows-rpe': dict(window_attention=True, rel_pos_bias='window'),
    'gathering': dict(window_attention=True, gathering=True),
    'gathering-rpe': dict(window_attention=True, gathering=True, rel_pos_bias='all'),
    'gathering-hrpe': dict(window_attention=True, gathering=True, rel_pos_bias='window'),
    'all': dict(ratio=0.2, window_attention=True, gathering=True, rel_pos_bias='window'),
}
