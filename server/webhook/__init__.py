"""Webhooks: events told to a URL of the operator's choice, signed, at least once."""
