"""How many files and sockets this process may have open: the system's limit, raised as far as it lets us."""

from __future__ import annotations


def raise_descriptor_limit(needed: int) -> int:
    """Raise the soft limit of open files to the hard one where `needed` asks for it; the limit in force."""
    try:
        import resource
    except ImportError:  # no POSIX system: no such limit
        return needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(needed, 2**31 - 1)
    if soft >= needed:
        return soft
    wanted = [hard, needed] if hard != resource.RLIM_INFINITY else [needed]
    for limit in wanted:  # macOS refuses more than its kernel's own limit, whatever the hard one says
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        return limit
    return soft
