"""What a program inside a simulated trust domain sees of it: files, sockets and a log, where hardware would put them.

    tsm       the kernel's report and register files as objects, error numbers included
    fusefs    the same as a file system
    mounts    private mounts and the plan of the sandbox
    sandbox   runs a program in it, `cloister sim run`
    qgs       the host's quote generation service, over Unix sockets and TCP
    dstack    dstack's guest agent; dstack_http is its socket, keccak and secp256k1 are what it signs with

Nothing here needs a package beyond libfuse and bubblewrap, and those only `sandbox` does.
"""
