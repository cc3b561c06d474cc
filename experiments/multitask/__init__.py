"""Several tasks for one network, one folder per problem."""
