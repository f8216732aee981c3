"""What can stop a gateway from working, as its callers see it."""


class StartError(Exception):
    """The gateway cannot start; the text is one plain line for the person who started it."""


class InstallRefusedError(Exception):
    """A back end cannot carry a mapping on this external port; the core then tries another one."""


class StoreError(Exception):
    """The state file did not take a change, so nothing that depends on it may be acknowledged."""
