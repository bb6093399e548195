"""Reports as work: labelled sets, generated pages, scoring."""
