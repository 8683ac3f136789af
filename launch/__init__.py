"""The command line, pipelines and the result page: the only room that knows the whole house."""
