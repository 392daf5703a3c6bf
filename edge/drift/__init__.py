"""Whether what a model is asked, and what it answers, is still like what it was packed with."""
