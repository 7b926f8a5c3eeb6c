"""`accelerate launch -m disegno.training NAME --data DIR ...`: `disegno teach`, in each of the processes."""

from disegno.cli.main import main

if __name__ == "__main__":
    import sys

    main(["teach", *sys.argv[1:]], prog_name="disegno")
