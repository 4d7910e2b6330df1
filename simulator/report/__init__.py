"""The report: from the timeline to numbers, tables, pictures and traces."""
