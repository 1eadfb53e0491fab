"""Columns of numbers in a text file."""

import csv
import json
import re
from itertools import islice

import numpy as np

from .recording_channels import from_columns, is_number, lead_name, library, one_line, unit_in_millivolts

_PREAMBLE_LINES = 200  # after which a file without a row of numbers is none of numbers
_UNIT_WORDS = ("s", "sec", "seconds", "ms", "us", "ns", "hh:mm:ss.mmm", "mm:ss.mmm", "hh:mm:ss", "samples", "-", "n/a")
# "Sampling rate: 250 Hz", "Fs,250", "Abtastrate = 1 kHz", above a table
_STATED_RATE = re.compile(
    r"(?:\b(?:sampl\w*|abtast\w*)[\s_-]*(?:rate|freq\w*)|\babtast(?:rate|frequenz)|\bfs)\s*(?:[(\[]hz[)\]])?"
    r"\s*[:=,;\s]+\s*\"?(?P<rate>\d+(?:[.,]\d+)?)\s*(?P<unit>k?hz|hertz|sps)?\s*\"?\s*[;,]*\s*$",
    re.IGNORECASE,
)
_STATED_UNIT = re.compile(r"\W*(?:units?|einheit)\s*[:=]\s*(?P<unit>\S+)", re.IGNORECASE)
_CLOCK = r"(?:\d+:)?\d+:\d\d(?:[.,]\d+)?"
_BITALINO_MILLIVOLTS = 3.3 * 1000 / 1100  # supply voltage over gain of its ECG sensor, in mV for the whole range


def open_text(path, leads=None):
    """Columns of numbers, with comma, semicolon, tab or blanks between them; or, where there are many more columns
    than rows, a row for each lead. What stands above the numbers may be the columns' names, as in "II (mV)", a row of
    their units, `sep=;`, and what devices state: "Sampling Rate (Hz):= 1000" and "Labels:= ECG" (biosppy), "Sample
    Rate,512 hertz", "Lead,Lead I" and "Unit,uV" (Apple Watch), a line of JSON (OpenSignals). A column of dates or
    clock times is one of time; one of words, such as annotations, is left out."""
    encoding = _encoding(path)
    with open(path, encoding=encoding) as file:
        lines = [line.rstrip("\r\n") for line in islice(file, _PREAMBLE_LINES)]
    table = _Table(path, lines)
    columns, notes = _columns_of(path, table, encoding)
    for k, steps in (table.opensignals or {}).items():
        columns[k] = (columns[k] / steps - 0.5) * _BITALINO_MILLIVOLTS
    matrix = np.stack(columns)
    if _is_row_by_row(matrix, table):
        return _rows_as_leads(path, table, matrix.T)
    titles = table.titles if table.titles is not None else [None] * len(columns)
    if table.labels and table.titles is None:
        titles = table.labels
    # rows may end with a separator
    while len(columns) > 1 and np.isnan(columns[-1]).all() and (table.titles is None or len(titles) < len(columns)):
        columns, matrix = columns[:-1], matrix[:-1]
        titles = titles[: len(columns)]
    if len(titles) != len(columns):
        raise ValueError(f"{path.name}: {len(titles)} column names for {len(columns)} columns")
    is_words = [
        np.isnan(column).all() and len(columns) > 1 and title is not None and lead_name(title) is None
        for column, title in zip(columns, titles, strict=True)
    ]
    is_words = [words or str(title).endswith("(no signal)") for words, title in zip(is_words, titles, strict=True)]
    kept = [k for k, words in enumerate(is_words) if not words]
    names = [re.sub(r"\s*[(\[].*", "", titles[k] or "") for k in kept]
    is_table = table.opensignals is not None or any(map(lead_name, names))
    if leads is None and len(kept) < len(titles) and not is_table:
        words = next(title for title, is_of_words in zip(titles, is_words, strict=True) if is_of_words)
        raise ValueError(f"{path.name}: not columns of numbers (there are words in {words!r})")
    left_out = [str(titles[k]) for k, words in enumerate(is_words) if words]
    notes = [*notes, *([f"columns left out: {', '.join(left_out)}"] if left_out else [])]
    matrix, titles = matrix[kept], [titles[k] for k in kept]
    is_sample = ~np.isin(matrix, (-(2**15), -(2**31)))  # what converters write where they have no sample
    return from_columns(path.stem, titles, np.where(is_sample, matrix, np.nan), table.rate, notes=notes)


class _Table:
    """What the first lines of a text file say: how its rows are written, where they begin, and what stands above.

    Attributes: `separator` (None: blanks), `decimal`, `start` (the line of the first row of numbers), `titles`
    (`list[str]`, *optional*, with units where a row of them follows), `rate` (Hz) and `labels`, where stated.
    """

    def __init__(self, path, lines):
        self.path, self.rate, self.labels, self.titles = path, None, None, None
        unit = lead = given = None
        content = []  # (line, text) of what is no comment
        for number, line in enumerate(lines):
            text = line.strip()
            if text.startswith("#"):
                self._read_comment(text.lstrip("# "))
            elif re.fullmatch(r"\W?sep=.", text, re.IGNORECASE):
                given = text[-1]
            elif text:
                content.append((number, line))
        first = next((k for k, (_, line) in enumerate(content) if self._is_row(line, content[k + 1 :])), None)
        if first is None:
            found = f", but {content[0][1].strip()[:40]!r}" if content else ""
            raise ValueError(
                f"{path.name}: not columns of numbers{found}" if content else f"{path.name} holds no numbers"
            )
        self.start = content[first][0]
        body = content[min(first + 1, len(content) - 1)][1]
        self.separator = given or self._separator_of(body, content[first - 1][1] if first else "")
        for _, line in content[:first]:
            cells = self.split(line, ",;\t")
            rate = re.fullmatch(
                r"([\d.,]+)\s*(hertz|hz)", " ".join(cells[1:]).strip().replace(" ,", ","), re.IGNORECASE
            )
            stated = _STATED_RATE.search(line)
            if stated and is_number(stated["rate"]):
                self._state_rate(stated)
            elif rate:
                self.rate = float(rate[1].replace(",", "."))
            elif interval := re.fullmatch(r"(\d*\.\d+) sec(onds?)?", cells[0]):  # PhysioNet's "sample interval"
                self.rate = round(1 / float(interval[1]), 6) if float(interval[1]) > 0 else None
            elif len(cells) == 2 and unit_in_millivolts(cells[1]) is not None and len(cells[0].split()) == 1:
                unit = cells[1]
            elif stated := _STATED_UNIT.fullmatch(line.strip()):
                unit = stated["unit"]
            elif (
                len(cells) == 2 and self.rate and lead_name((cells[1].split() or [""])[-1]) and not lead_name(cells[0])
            ):
                lead = cells[1].split()[-1]
        if self.rate is not None and lead is not None:  # Apple Watch: one column, in some countries with commas
            self.separator = "\0"
            self.titles = [f"{lead} ({unit})" if unit else lead]
        header = self.split(content[first - 1][1]) if first else []
        is_one_column = len(header) == 1 and lead_name(header[0])
        if self.separator == "," and is_one_column and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", body):
            self.separator, self.titles = "\0", header  # with decimal commas
        row = self.split(body)
        self.decimal = "," if any(re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", cell, re.I) for cell in row) else "."
        if self.titles is None:
            self._read_titles([self.split(line) for _, line in content[:first]], len(row), row[-1] == "")
        if self.titles is not None and unit is not None:  # of those that say none themselves
            self.titles = [f"{title} ({unit})" if lead_name(title or "") else title for title in self.titles]
        if self.titles is None and _counts_columns(self.split(content[first][1]), body):
            self.titles, self.start = self.split(content[first][1]), self.start + 1

    def _read_comment(self, text):
        key, _, value = (part.strip() for part in text.partition(":="))
        if key.lower() == "sampling rate (hz)" and value:
            if not is_number(value):
                raise ValueError(
                    f"{self.path.name}: its sampling rate is stated as {value!r}; expected a number of Hz"
                )
            self.rate = float(value)
        elif key.lower() == "labels" and value:
            self.labels = [label.strip() for label in re.split(r"[,;\t]", value)]
        elif text.startswith("{"):
            self._read_opensignals(text)
        elif stated := _STATED_RATE.search(text):
            self._state_rate(stated)

    def _state_rate(self, stated):
        thousand = 1000.0 if (stated["unit"] or "").lower() == "khz" else 1.0
        self.rate = float(stated["rate"].replace(",", ".")) * thousand

    def _read_opensignals(self, text):
        """OpenSignals' line of JSON: for each device its rate, columns, sensors and resolutions."""
        try:
            device = next(iter(json.loads(text).values()))
            self.rate, self.labels = float(device["sampling rate"]), list(map(str, device["column"]))
        except (ValueError, KeyError, StopIteration, TypeError, AttributeError):
            return
        sensors = dict(zip(device.get("label", ()), device.get("sensor", ()), strict=False))
        bits = dict(zip(self.labels, device.get("resolution", ()), strict=False))
        self.opensignals = {}
        for k, label in enumerate(self.labels):
            if label.lower() in ("nseq", "di") or sensors.get(label) is None:
                self.labels[k] = f"{label} (no signal)"  # a counter, or a switch
            elif "ECG" in str(sensors[label]).upper():
                self.labels[k] = (
                    f"ECG {label}" if sum("ECG" in str(s).upper() for s in sensors.values()) > 1 else "ECG"
                )
                if "bitalino" in str(device.get("device", "")).lower() and bits.get(label):
                    self.opensignals[k] = 2.0 ** int(bits[label])
                    self.labels[k] += " (mV)"
            else:
                self.labels[k] = f"{sensors[label]} {label}"

    opensignals = None  # of a file of OpenSignals, {column: steps of its converter} where they are known

    def _is_row(self, line, following):
        """Whether a line is one of numbers: some of its cells are, and words only where the next lines have them."""
        separator = self._separator_of(line, "")
        cells = self.split(line, separator)
        numbers = [is_number(cell) for cell in cells]
        if not any(numbers):
            return False
        if all(numbers) or len(cells) == 1:
            return True
        if cells[0] and not _is_time(cells[0]) and not numbers[0] and sum(numbers) >= len(cells) - 1 > 1:
            return True  # a lead's name before its samples, or a word before the numbers
        others = [self.split(other[1], separator) for other in following[:3]]
        return (
            bool(others)
            and all(
                len(other) == len(cells) and all(map(lambda a, b: a == "" or is_number(a) == b, other, numbers))
                for other in others
            )
            and sum(numbers) * 2 >= len([c for c in cells if c])
        )

    @staticmethod
    def _separator_of(line, above):
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", line)
        for mark in (";", "\t", "|"):
            if mark in bare:
                return mark
        if "," in bare or (re.search(r"\"[^\"]*,[^\"]*\"", line) and "," in bare):
            return ","
        return "," if "," in above and " " not in line.strip() else None

    def split(self, line, separator=""):
        """The cells of a line."""
        separator = self.separator if separator == "" else separator
        if separator is None:
            cells = line.split()
        elif len(separator) > 1:
            mark = next((mark for mark in separator if mark in line), ",")
            cells = next(csv.reader([line], delimiter=mark))
        elif separator == "\0":
            cells = [line]
        else:
            quote = "'" if line.lstrip().startswith("'") else '"'
            cells = next(csv.reader([line], delimiter=separator, quotechar=quote, skipinitialspace=True))
        return [cell.strip().strip("'\"\ufeff") for cell in cells]

    def _read_titles(self, rows, count, ends_empty):
        rows = [row for row in rows if len(row) in (count, count - ends_empty)]
        if rows and len(rows) > 1 and all(_is_unit(cell) for cell in rows[-1]):
            pairs = zip(rows[-2], (cell.strip("()[]") for cell in rows[-1]), strict=True)
            self.titles = [
                f"{title} ({unit})" if unit_in_millivolts(unit) is not None else title for title, unit in pairs
            ]
        elif rows and not all(cell == "" for cell in rows[-1]):
            self.titles = rows[-1]


def _is_unit(cell):
    cell = cell.strip("()[]").lower()
    is_of_time = re.fullmatch(r"[\d.]+ sec(onds?)?|hh:mm[hmsdy:./ -]*", cell) is not None
    return cell == "" or is_of_time or cell in _UNIT_WORDS or unit_in_millivolts(cell) is not None


def _is_time(cell):
    pattern = rf"\[?(\d{{4}}-\d\d-\d\d([ T].*)?|(\d{{1,4}}[./]\d{{1,2}}[./]\d{{1,4}}[ T])?{_CLOCK}( .*)?\]?)"
    return re.fullmatch(pattern, cell) is not None


def _columns_of(path, table, encoding):
    """The file's columns as float64, and notes: dates and clock times in seconds, words as NaN."""
    pandas, separator = library("pandas"), r"\s+" if table.separator is None else table.separator
    given = {"sep": separator, "header": None, "skiprows": table.start, "encoding": encoding, "comment": None}
    if separator == "\0":  # one column, whatever is in it
        with open(path, encoding=encoding) as file:
            cells = [line.strip() for line in islice(file, table.start, None)]
        frame = pandas.DataFrame({0: [cell.strip('"') for cell in cells if cell]})
    else:
        quote = {"quotechar": "'"} if table.separator else {}
        with open(path, encoding=encoding) as file:
            first = next(islice(file, table.start, None), "")
        quote = quote if first.lstrip().startswith("'") else {}
        try:
            frame = pandas.read_csv(
                path, decimal=table.decimal, na_values=["-", "nan", "NaN", ""], dtype=np.float64, **given
            )
            return [frame[k].to_numpy() for k in frame], []
        except ValueError:
            pass
        try:
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, **given, **quote)
        except ValueError as error:
            raise ValueError(f"{path.name}: not columns of numbers ({one_line(error)})") from error
    return [_as_numbers(path, frame[k], table.decimal) for k in frame], []


def _as_numbers(path, cells, decimal):
    pandas = library("pandas")
    cells = cells.fillna("").astype(str).str.strip().str.strip("'\"")
    numbers = cells.str.replace(",", ".", regex=False) if decimal == "," else cells
    numbers = numbers.str.replace("\u2212", "-", regex=False)
    values = pandas.to_numeric(numbers, errors="coerce").to_numpy(np.float64)
    is_empty = cells.str.lower().isin(["", "-", "nan", "n/a", "na", "null"]).to_numpy()
    strange = np.isnan(values) & ~is_empty
    if not strange.any():
        return values
    first = cells[strange.argmax()]
    if strange.all() or strange.sum() >= 0.9 * (~is_empty).sum():
        if _is_time(first):
            return _seconds(path, cells.str.strip("[]"))
        return np.full(len(cells), np.nan)
    raise ValueError(f"{path.name}: not columns of numbers ({first[:40]!r} is among them)")


def _seconds(path, cells):
    """Dates as ISO 8601 writes them, or clock times, perhaps with a date in any order, in seconds since the first: of
    these midnight alone begins a new day."""
    try:
        if re.match(r"\d{4}-", cells.iloc[0]):
            times = library("pandas").to_datetime(cells.str.replace(",", ".", regex=False), format="mixed")
            return (times - times.iloc[0]).dt.total_seconds().to_numpy()
        clocks = [re.search(_CLOCK, cell)[0].replace(",", ".").split(":") for cell in cells]
        values = np.array([sum(float(part) * 60.0**k for k, part in enumerate(reversed(clock))) for clock in clocks])
        halves = cells.str.upper().str.extract(r"\b([AP])\.?M", expand=False)
        if halves.notna().all():
            values = values % 43_200.0 + np.where(halves == "P", 43_200.0, 0.0)
        values = values + 86_400.0 * np.cumsum(np.diff(values, prepend=values[0]) < -43_200.0)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path.name}: its column of times cannot be read ({one_line(error)})") from error
    return values - values[0]


def _is_row_by_row(matrix, table):
    columns, rows = matrix.shape
    return columns > 100 and rows <= 64 and columns > 4 * rows


def _rows_as_leads(path, table, matrix):
    """A row for each lead, its name perhaps first."""
    titles = None
    if np.isnan(matrix[:, 0]).all():
        with open(path, encoding=_encoding(path)) as file:
            rows = [line for line in islice(file, table.start, None) if line.strip()]
        titles, matrix = [table.split(line.partition(table.separator or " ")[0])[0] for line in rows], matrix[:, 1:]
    is_sample = ~np.isin(matrix, (-(2**15), -(2**31)))
    return from_columns(path.stem, titles or [None] * len(matrix), np.where(is_sample, matrix, np.nan), table.rate)


def _encoding(path):
    """UTF-8 with or without a mark, UTF-16 with one (what spreadsheets save), else Latin-1, in which old devices
    write their microvolts."""
    with open(path, "rb") as file:
        start = file.read(2**16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        start.rpartition(b"\n")[0].decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _counts_columns(cells, second):
    """Whether a first row is 0, 1, 2, ... (or from 1 on), as pandas names columns without names: sure of three or
    more, or where the next row has decimals."""
    if not any(cells == [str(k) for k in range(first, first + len(cells))] for first in (0, 1)):
        return False
    return len(cells) > 2 or "." in second
