"""The nouns: every frozen type that reaches disk, with its enums and reason codes."""
