"""What is handed over: the gate that checks weights, and the artifact folder."""
