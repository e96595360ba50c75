"""From a row of a file to tokens in a flat batch: row → Example → Encoded → FlatBatch."""
