"""From a plan to programs of the engine: actions to routines, collectives to transfers, memory to counters."""
