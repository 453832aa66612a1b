"""Keyturn's verifier: checks the logs of nodes, hands out receipts, adds up compute, answers auditors."""
