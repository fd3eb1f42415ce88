"""What runs in Dynamo's own interpreter: only the standard library, ai-dynamo and
`files/dynamo_entries.py` may be imported here."""
