"""What a page shows of an answer, as HTML and SVG: a gauge or bars, what moved it, its sources; a conversation."""

import html
import math

CALLED = {"text": "words", "audio": "voice", "vision": "face"}
CSS = """
.dark { --color-accent: #93c5fd; }
.answer h2 { margin: 0 0 4px; }
.answer .gauge { width: 100%; max-width: 380px; display: block; }
.answer .gauge text { fill: currentColor; font: 13px system-ui, sans-serif; }
.answer .bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 4px 10px; align-items: center;
  margin: 6px 0 14px; }
.answer .bars .track { position: relative; height: 16px; background: #8883; border-radius: 4px; overflow: hidden; }
.answer .bars .fill { position: absolute; top: 0; bottom: 0; background: #0b57d0; }
.answer .bars .less { background: #b3261e; }
.answer .bars .number { font-variant-numeric: tabular-nums; text-align: right; }
.answer figure { margin: 8px 0; }
.answer .faces { display: flex; flex-wrap: wrap; gap: 6px; }
.answer .faces img { width: 84px; height: 84px; border-radius: 6px; object-fit: cover; margin: 0; }
.answer .faces figure { margin: 0; font-size: 13px; text-align: center; }
.answer blockquote { border-left: 3px solid #8888; margin: 6px 0; padding: 2px 0 2px 10px; }
.answer .lane { position: relative; height: 44px; background: #8882; border-radius: 6px; margin: 2px 0 10px; }
.answer .lane button { position: absolute; top: 3px; bottom: 3px; min-width: 8px; padding: 0 2px; overflow: hidden;
  border: 1px solid #0005; border-radius: 4px; color: #111; font-size: 13px; cursor: pointer; white-space: nowrap; }
.answer .lane button:focus-visible { outline: 3px solid #0b57d0; }
.answer .wide { overflow-x: auto; } .answer table { width: 100%; border-collapse: collapse; }
.answer td, .answer th { text-align: left; padding: 3px 8px 3px 0; border: 0; border-bottom: 1px solid #8884; }
"""
# of lane and bars, all dark enough to be seen and light enough for dark letters
COLORS = ("#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#d7aefb", "#fcad70", "#78d9ec", "#dadce0")


def answer_page(answer, scale, faces=()):
    """
    Args:
        answer (`dict`): of the pipeline, with or without `explain`.
        scale (`tuple[float, float]` or None): the ends of a number's range.
        faces (`list[tuple[float, str]]`): seconds, and a picture as data address.
    """
    parts = [headline(answer, scale)]
    if answer.get("value") is not None:
        parts.append(gauge(answer["value"], answer.get("spread"), scale))
    elif "probabilities" in answer:
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        parts.append(bars([(name, share, f"{share:.0%}") for name, share in ranked]))
        entropy = -sum(share * math.log(share) for share in answer["probabilities"].values() if share > 0)
        parts.append(f"<p>As unsure as between {math.exp(entropy):.1f} of {len(ranked)} equally likely ones.</p>")
    parts.append(movers(answer.get("without", {})))
    parts.append(sources(answer.get("made_from") or {}, faces))
    return f"<div class='answer'>{''.join(parts)}</div>"


def headline(answer, scale):
    if answer.get("problem"):
        return f"<h2>No answer</h2><p>{html.escape(answer['problem'])}</p>"
    if answer.get("value") is None:
        share = f", {answer['score']:.0%}" if "score" in answer else ""
        return f"<h2>{html.escape(str(answer['label']).capitalize())}{share}</h2>"
    return f"<h2>{in_words(answer['value'], scale)}, {signed(answer['value'])}</h2>"


def in_words(value, scale):
    low, high = scale
    if low != -high:
        return f"{(value - low) / (high - low):.0%} of the way from {low:g} to {high:g}"
    strength = abs(value) / high
    if strength < 1 / 12:
        return "Neither positive nor negative"
    degree = "Slightly " if strength < 1 / 3 else "Strongly " if strength > 2 / 3 else ""
    return f"{degree}{'positive' if value > 0 else 'negative'}".capitalize()


def signed(value):
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def gauge(value, spread, scale):
    """A half circle from one end of the scale to the other, the value on it, and the spread as a band around it."""
    low, high = scale

    def place(number, radius):
        angle = math.pi * (1 - (min(max(number, low), high) - low) / (high - low))
        return f"{150 + radius * math.cos(angle):.1f} {150 - radius * math.sin(angle):.1f}"

    def arc(begin, end, color, width):
        return (
            f"<path d='M {place(begin, 110)} A 110 110 0 0 1 {place(end, 110)}' fill='none' stroke='{color}' "
            f"stroke-width='{width}'/>"
        )

    band = "" if spread is None else arc(value - spread, value + spread, "#0b57d0", 22)
    said = f"{signed(value)} on a scale from {low:g} to {high:g}"
    told = "the model gives no spread" if spread is None else f"give or take {spread:.2f} (one standard deviation)"
    middle = (low + high) / 2
    return (
        f"<svg class='gauge' viewBox='0 0 300 190' role='img' aria-label='{said}, {told}'>"
        f"{arc(low, high, '#8886', 22)}{band}"
        f"<path d='M 150 150 L {place(value, 118)}' stroke='currentColor' stroke-width='4' stroke-linecap='round'/>"
        f"<circle cx='150' cy='150' r='7' fill='currentColor'/>"
        f"<text x='40' y='172' text-anchor='middle'>{low:g}</text>"
        f"<text x='150' y='26' text-anchor='middle'>{middle:g}</text>"
        f"<text x='260' y='172' text-anchor='middle'>{high:g}</text>"
        f"<text x='150' y='186' text-anchor='middle'>{told}</text></svg>"
    )


def bars(rows):
    """[(name, share between 0 and 1, text)] as bars."""
    cells = "".join(
        f"<span>{html.escape(str(name))}</span><span class='track'><span class='fill' style='left:0;width:"
        f"{100 * min(max(share, 0), 1):.1f}%'></span></span><span class='number'>{text}</span>"
        for name, share, text in rows
    )
    return f"<div class='bars'>{cells}</div>"


def movers(without):
    """What each of words, voice and face adds: bars to the right for more, to the left for less."""
    moved = {name: one["difference"] for name, one in without.items() if "difference" in one}
    if not moved:
        return ""
    if len(moved) == 1:
        (name,) = moved
        return f"<p>It comes from the {CALLED[name]} alone.</p>"
    largest = max(max(map(abs, moved.values())), 1e-6)
    cells = ""
    for name, difference in sorted(moved.items(), key=lambda item: -abs(item[1])):
        width = 50 * abs(difference) / largest
        left, kind = (50, "fill") if difference >= 0 else (50 - width, "fill less")
        cells += (
            f"<span>{CALLED[name]}</span><span class='track'><span class='{kind}' style='left:{left:.1f}%;width:"
            f"{width:.1f}%'></span></span><span class='number'>{signed(difference)}</span>"
        )
    return f"<h3>What moved it</h3><p>The answer less the answer without them.</p><div class='bars'>{cells}</div>"


def sources(made_from, faces):
    """Transcript, faces, and what was there or missing."""
    parts, facts = [], []
    if "transcript" in made_from:
        heard = f"“{html.escape(made_from['transcript'])}”" if made_from["transcript"] else "No words."
        parts.append(f"<h3>Heard</h3><blockquote>{heard}</blockquote>")
    if faces:
        pictures = "".join(
            f"<figure><img src='{source}' alt='The face that was read, at {time:.1f} s'><figcaption>{time:.1f} s"
            "</figcaption></figure>"
            for time, source in faces
        )
        parts.append(f"<h3>The face that was read</h3><div class='faces'>{pictures}</div>")
    if "seconds" in made_from:
        facts.append(f"{made_from['seconds']:.1f} s long")
    if "speech_seconds" in made_from:
        facts.append(f"speech in {made_from['speech_seconds']:.1f} s")
    if made_from.get("frames"):
        facts.append(f"a face in {made_from['frames_with_face']} of {made_from['frames']} frames looked at")
    for why in ("missing", "unread"):
        facts += [f"{CALLED.get(name, name)} {why}: {reason}" for name, reason in made_from.get(why, {}).items()]
    facts += list(made_from.get("notes", ()))
    if facts:
        parts.append("<h3>Made from</h3><ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts) + "</ul>")
    return "".join(parts)


def conversation_page(answers, scale):
    """Each speaker's turns over time, coloured by the answer, a click goes there in the film; then all as a table."""
    end = max(turn["end"] for turn in answers)
    labels = sorted({name for turn in answers for name in turn.get("probabilities", {})})
    lanes = ""
    for speaker in dict.fromkeys(turn["speaker"] or "" for turn in answers):
        buttons = "".join(
            turn_button(turn, end, labels, scale) for turn in answers if (turn["speaker"] or "") == speaker
        )
        lanes += f"<div>{html.escape(speaker) or 'Speech'}</div><div class='lane'>{buttons}</div>"
    rows = "".join(
        f"<tr><td>{turn['start']:.1f}–{turn['end']:.1f} s</td><td>{html.escape(turn['speaker'] or '')}</td>"
        f"<td>{html.escape(in_short(turn))}</td><td>{html.escape(turn['text'] or '')}</td></tr>"
        for turn in answers
    )
    return (
        f"<div class='answer'><h2>{len(answers)} turns</h2>{lanes}<div class='wide' tabindex='0' role='region' "
        f"aria-label='The turns as a table'><table><thead><tr><th>When</th><th>Who</th><th>Answer</th><th>Words</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def turn_button(turn, end, labels, scale):
    text = in_short(turn)
    if turn.get("value") is not None:
        low, high = scale
        share = (turn["value"] - low) / (high - low)
        color = f"hsl({round(120 * share)} 65% 72%)"  # from red over yellow to green
    else:
        color = COLORS[labels.index(turn["label"]) % len(COLORS)] if turn.get("label") in labels else "#dadce0"
    told = html.escape(f"{turn['start']:.1f} to {turn['end']:.1f} s: {text}. {turn['text'] or ''}", quote=True)
    # numbers alone enter the script
    go = (
        "const film = document.querySelector('.clip video'); "
        f"if (film) {{ film.currentTime = {float(turn['start']):.3f}; film.play(); }}"
    )
    return (
        f'<button type="button" onclick="{go}" title="{told}" aria-label="{told}" style="background:{color};'
        f'left:{100 * turn["start"] / end:.2f}%;width:{100 * (turn["end"] - turn["start"]) / end:.2f}%">'
        f"{html.escape(text)}</button>"
    )


def in_short(turn):
    if turn.get("problem"):
        return "no answer"
    if turn.get("value") is not None:
        return signed(turn["value"])
    return f"{turn['label']} {turn['score']:.0%}" if "score" in turn else str(turn["label"])
