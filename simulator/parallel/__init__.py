"""Who holds what: layout, rules, mesh, placement, sharding, stages."""
