"""Ray clusters behind one command: on this machine, on AWS, on Kubernetes."""
