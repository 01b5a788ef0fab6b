"""What the demo says and what it holds: a probe for "the city is in Texas" beside the model's answer, over all cities.

    python examples/said_and_held.py                    # a few minutes on one core

1. A probe on the latents of the demo's SAEs is fitted on some cities and tested on others.
2. For every city, a text first states something false: that a city of Texas is elsewhere, or that another is in Texas. Then it
   asks for the capital of its state. The probe is read at the city, the answer is the most probable next token.
3. The probe's strongest latent is steered along at cities elsewhere: does the answer become Austin?
"""

from __future__ import annotations

from crosstrace.replacement_model import Add, ReplacementModel, demo, in_use, open_sae
from crosstrace.tracer import Example, Pooling, disagreements, fit_probe, show_disagreements, show_probe, with_latents

TEMPLATES = (
    "{}",
    "The state containing {}",
    "The capital of the state containing {}",
    "The abbreviation of the state containing {}",
)
FALSE = "{city} is in the state of {state} The capital of the state containing {city}"
QUESTION = "The capital of the state containing {city} is"
AMOUNTS = (5.0, 10.0, 20.0, 40.0)
STEERED = 20


def main() -> None:
    model = ReplacementModel.demo("cpu")
    sae = in_use(open_sae(demo.SAES_DIR), model.device)
    cities = [(city, state.name) for state in demo.load_facts().states for city in (*state.cities, state.capital)]

    def prompts(here: bool) -> list[Example]:
        return [
            Example(template.format(city), city)
            for city, state in cities
            if (state == "Texas") == here
            for template in TEMPLATES
        ]

    probe = fit_probe(model, prompts(True), prompts(False), [sae], Pooling.LAST, name="in Texas")
    show_probe(probe)

    def answer(prompt: str) -> str:
        tokens_p = model.tokenize(prompt)
        normed_pd = model.sites.run(model.sites.embed(tokens_p)[None])[0]
        return model.token_strings(model.sites.unembed(normed_pd[-1]).argmax().view(1))[0].strip()

    told = []
    for city, state in cities:
        text = FALSE.format(city=city, state="Ohio" if state == "Texas" else "Texas")
        told.append(Example(text, city, answer(f"{text} is") == "Austin"))
    show_disagreements(disagreements(model, probe, told, [sae]))
    right = sum(one.says == (state == "Texas") for one, (_, state) in zip(told, cities, strict=True))
    print(f"the answer is right about Texas at {right} of {len(told)} cities, whatever the text states")

    latent = next(latent for latent in probe.latents if latent.weight > 0)
    others = [city for city, state in cities if state != "Texas"][:: max(1, len(cities) // STEERED)][:STEERED]
    for amount in AMOUNTS:
        moved = 0
        for city in others:
            prompt = QUESTION.format(city=city)
            local = model.local(prompt)
            at = local.n_positions - 2
            edits = with_latents([Add(f"{latent.name}@{at}", amount)], model, [sae])
            logits_v = model.intervene(local, edits).logits_v
            moved += model.token_strings(logits_v.argmax(-1).view(1))[0].strip() == "Austin"
        print(f"steering {latent.name} by +{amount:g} at the city: {moved} of {len(others)} answers become Austin")


if __name__ == "__main__":
    main()
