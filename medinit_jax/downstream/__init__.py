"""After a start: fine-tune, probe, measure, and compare starts fairly."""
