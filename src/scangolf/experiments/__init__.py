"""Many runs: plans of ablations, and statistics over what they left."""
