"""What the commands of the command line do, one function each; every heavy import waits until its command runs."""
