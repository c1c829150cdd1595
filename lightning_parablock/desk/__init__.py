"""How sites talk beside the exchange: small HTTP services with limits, checksums and no pickles."""
