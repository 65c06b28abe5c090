"""The gRPC adapter: the same use-cases as REST, over HTTP/2, behind the same doors."""
