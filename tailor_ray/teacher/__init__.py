"""The teacher: requests within limits and budget, a ledger of replies, lessons accepted or refused."""
