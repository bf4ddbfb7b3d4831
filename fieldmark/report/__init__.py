"""One self-contained page that tells how a model did: ``from fieldmark.report.page import write_report``."""
