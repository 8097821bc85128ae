"""Names that a ruleset and redirectd agree on."""

#: label of states that a new address makes useless; redirectd kills them at the change,
#: while TCP states are kept and redirected
FLUSH_LABEL = "flush-on-move"
#: pflog interface that gets the first packet of each new TCP state (pflogd leaves it alone)
PROMPT_INTERFACE = "pflog1"
