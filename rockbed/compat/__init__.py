"""Names of the systems that Rockbed succeeds, for programs written for them: see the modules."""
