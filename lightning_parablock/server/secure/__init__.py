"""Secure aggregation on both ends of an exchange: masked whole numbers out, their sum in, and a commit of the sum."""
