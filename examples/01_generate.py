"""A picture from a sentence, with the built-in model: python examples/01_generate.py"""

from pathlib import Path

from disegno import Progress, Request, Result, generate

request = Request(prompt="a red car on a city street", seed=1, steps=8)
for event in generate(request):
    if isinstance(event, Progress):
        print(f"{event.stage} {event.step}/{event.num_steps}")
    if isinstance(event, Result):
        Path("out").mkdir(exist_ok=True)
        event.images[0].save("out/example_generate.png")
        print("out/example_generate.png, seed", event.seeds[0])
