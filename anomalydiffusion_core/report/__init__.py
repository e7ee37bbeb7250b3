"""Pages for people: the report on a generated dataset, and what all pages share."""
