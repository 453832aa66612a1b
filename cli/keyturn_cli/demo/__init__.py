"""``keyturn demo``: from recordings to an audited number and a forgery that fails, on one machine."""
