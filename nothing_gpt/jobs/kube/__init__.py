"""What `gke` knows of Kubernetes: its API, a Job's objects, how they are watched, and what they say of themselves."""
