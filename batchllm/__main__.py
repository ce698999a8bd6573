"""The process's entry: `batchllm` and `python -m batchllm`."""

from batchllm.cli import main

if __name__ == "__main__":
    main()
