"""What every stage of a run did to every domain: scores, entropy, length, diversity."""
