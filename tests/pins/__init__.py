"""What must not change: stored facts about the public surface, files, bytes and bits, compared with today's code.

``python -m tests.pins.store`` writes the JSON files anew. Whoever runs it changes a contract, and says so.
"""
