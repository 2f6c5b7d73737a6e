"""The teacher: requests sent within limits and budget, replies kept in a ledger, lessons accepted or refused."""
