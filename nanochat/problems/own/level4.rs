//! Level 4: small tasks of their own, described as one would describe them to a colleague.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Reads a list of pages such as `1-3,7` as the pages that it names, in the order in which it names them.
///
/// Parts are separated by commas. A part is a number or two numbers with a dash between, the second not smaller than
/// the first. Anything else, an empty list too, has no meaning.
// edges: "2-4,9"; "5-5"; "6-4"; ""; "1,,2"; "2-"; "a"; "1-2-3"; "0,1"
// inputs: text in one of "{1..=30},{2..=5}-{4..=8}" "{1..=9}-{1..=12}" "{1..=9},{1..=9}" "{1..=9}-" "7,{9..=12},x"
fn page_list(text: &str) -> Option<Vec<u32>> {
    let mut pages = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.parse().ok()?;
        let last: u32 = last.parse().ok()?;
        if first > last {
            return None;
        }
        pages.extend(first..=last);
    }
    Some(pages)
}

/// Writes sorted page numbers in short: runs of neighbours as first and last with a dash, all separated by commas.
///
/// Two neighbours are a run, too. No number occurs twice.
// inputs: pages in sorted distinct 1..=14
// edges: [1, 2, 3, 7]; [1]; [1, 2]; [1, 3, 5]; []
fn pages_in_short(pages: &[u32]) -> String {
    let mut parts = Vec::new();
    let mut start = 0;
    for place in 0..pages.len() {
        let ends = place + 1 == pages.len() || pages[place + 1] != pages[place] + 1;
        if ends && start == place {
            parts.push(pages[place].to_string());
        } else if ends {
            parts.push(format!("{}-{}", pages[start], pages[place]));
        }
        if ends {
            start = place + 1;
        }
    }
    parts.join(",")
}

/// Tells whether the last digit of a card's number fits the others.
///
/// Counted from the right, every second digit is doubled, and 9 is taken off what is then above 9. The sum of all must
/// be divisible by 10. Spaces are ignored; other characters, or fewer than two digits, are a mistake.
// inputs: text in one of "{10..=99}{10..=99}" "{0..=9} {0..=9}" "{0..=99}-{0..=9}" "{100..=999} {10..=99}"
// edges: "18"; "0"; "00"; "59"; "5 9"; "5a9"; "79927398713"; "79927398710"; ""; "91"; "a9"
fn card_number_fits(text: &str) -> bool {
    let mut sum = 0;
    let mut count = 0;
    for symbol in text.chars().rev().filter(|&c| c != ' ') {
        let digit = match symbol.to_digit(10) {
            Some(digit) => digit,
            None => return false,
        };
        let weighted = if count % 2 == 1 { digit * 2 } else { digit };
        sum += if weighted > 9 { weighted - 9 } else { weighted };
        count += 1;
    }
    count > 1 && sum % 10 == 0
}

/// Computes a formula in which each operator follows its two operands, such as `3 4 + 2 *`.
///
/// Its parts are separated by white space: whole numbers and the operators `+`, `-` and `*`. There is no value if an
/// operand is missing, if more than one value remains, or if a part is unknown.
// inputs: formula in made of "{0..=9} " "{0..=9} " "+ " "- " "* "
// edges: "5 6 + 3 *"; "7 2 -"; "1 +"; "1 2"; ""; "5"; "2 3 x"
fn postfix_value(formula: &str) -> Option<i64> {
    let mut stack: Vec<i64> = Vec::new();
    for part in formula.split_whitespace() {
        let value = match part {
            "+" | "-" | "*" => {
                let right = stack.pop()?;
                let left = stack.pop()?;
                match part {
                    "+" => left + right,
                    "-" => left - right,
                    _ => left * right,
                }
            }
            number => number.parse().ok()?,
        };
        stack.push(value);
    }
    if stack.len() == 1 {
        stack.pop()
    } else {
        None
    }
}

/// Describes a row of digits by saying how many of each follow one another: `1112` is three 1 and one 2, so `3112`.
// inputs: digits in made of "1" "2" "3" "22" "333"
fn said_aloud(digits: &str) -> String {
    let mut said = String::new();
    let mut rest = digits.chars().peekable();
    while let Some(digit) = rest.next() {
        let mut count = 1;
        while rest.next_if_eq(&digit).is_some() {
            count += 1;
        }
        said += &format!("{count}{digit}");
    }
    said
}

/// Returns where a robot is after its commands; it starts at (0, 0) and looks to the north, where y grows.
///
/// `F` moves it one step forward, `L` and `R` turn it by a quarter; other letters do nothing.
// inputs: commands in made of "F" "L" "R" "FF" "x"
// edges: "LF"; "RFF"; "LLF"; "FRFRFFRF"
fn robot_place(commands: &str) -> (i32, i32) {
    let (mut x, mut y) = (0, 0);
    let (mut dx, mut dy) = (0, 1);
    for command in commands.chars() {
        match command {
            'F' => {
                x += dx;
                y += dy;
            }
            'L' => (dx, dy) = (-dy, dx),
            'R' => (dx, dy) = (dy, -dx),
            _ => {}
        }
    }
    (x, y)
}

/// Returns who has three in a row on a board of nine squares, which are given line by line.
///
/// A square is `X`, `O` or a dot. Rows, columns and both diagonals count; if nobody has three, there is no winner. No
/// board has two winners.
// inputs: board in one of "XXX.OO..." "O..XOX..O" "........." "XO.XO.OX."
// edges: "XXX.OO..."; "OO.XXX..."; "X.X.O.OOO"; "X..XO.X.O"; ".O.XO..O."; "..X.OXO.X"; "X.O.XO..X"; "X.OXO.O.."
// edges: ".XX.OO.XX"; "X.XO.OX.X"; "XX.OO.XX."; "XOXXOX..."; "...XOXXOX"; "XOX...XOX"
// edges: "X...X...."; "....X...X"; "X.......X"; "..O.O...."; "....O.O.."; "..O...O.."
fn three_in_a_row(board: &str) -> Option<char> {
    let squares: Vec<char> = board.chars().collect();
    let lines = [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [0, 3, 6],
        [1, 4, 7],
        [2, 5, 8],
        [0, 4, 8],
        [2, 4, 6],
    ];
    for [a, b, c] in lines {
        if squares[a] != '.' && squares[a] == squares[b] && squares[b] == squares[c] {
            return Some(squares[a]);
        }
    }
    None
}

/// Returns how many rooms are needed for meetings, each given by its start and its end, which is after the start.
///
/// A room is free again at the moment at which its meeting ends.
// inputs: meetings in sorted distinct 0..=12 of length 0..=6
// edges: [(1, 3), (3, 5)]; [(1, 4), (2, 5), (3, 6)]; []
fn rooms_needed(meetings: &[(u32, u32)]) -> usize {
    meetings
        .iter()
        .map(|(start, _)| {
            meetings
                .iter()
                .filter(|(from, to)| from <= start && start < to)
                .count()
        })
        .max()
        .unwrap_or(0)
}

/// Joins stretches of time that overlap or touch, and returns what results, sorted by the start.
///
/// Each stretch is given by its start and its end, which is not before the start.
// inputs: stretches in sorted 0..=15 of length 0..=5
// edges: [(1, 3), (3, 5)]; [(6, 9), (1, 2), (4, 7)]; [(1, 9), (2, 3)]
fn joined_stretches(stretches: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut sorted = stretches.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (start, end) in sorted {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// Returns into how many groups people fall who know one another, directly or through others.
///
/// People have the numbers from 0 to `people - 1`, and each pair of numbers is an acquaintance; pairs with other
/// numbers are ignored.
// inputs: people in 0..=8, acquaintances in 0..=7 of length 0..=6
// edges: (4, [(0, 1), (2, 3), (1, 2)]); (3, []); (2, [(0, 5)]); (2, [(2, 0)]); (2, [(0, 2)]); (3, [(0, 2)])
fn circles_of_friends(people: usize, acquaintances: &[(usize, usize)]) -> usize {
    let mut circle: Vec<usize> = (0..people).collect();
    for &(one, other) in acquaintances {
        if one < people && other < people {
            let (kept, merged) = (circle[one], circle[other]);
            for number in &mut circle {
                if *number == merged {
                    *number = kept;
                }
            }
        }
    }
    circle.sort_unstable();
    circle.dedup();
    circle.len()
}

/// Returns the number of steps on the shortest way from the first square of a map to its last one.
///
/// The map is a list of lines; `#` is a wall, all else can be walked on. One step leads to a square above, below, left
/// or right. There is no way if one of the two squares is a wall, or if the map has no square.
// inputs: map in one of "..." ".#." "..#" "#.." "..." of length 1..=4
// edges: ["...", "##.", "..."]; ["..", "##", ".."]; ["."]; ["#"]; []; ["....", ".##.", "...."]
// edges: ["...", ".", ".."]; [".#...", ".#.#.", "...#."]; ["...", "##.", "...", ".##", "..."]
// equivalent: next.0 <= squares.len()
fn steps_through(map: &[&str]) -> Option<usize> {
    let squares: Vec<Vec<char>> = map.iter().map(|line| line.chars().collect()).collect();
    let goal = (
        squares.len().checked_sub(1)?,
        squares.last()?.len().checked_sub(1)?,
    );
    let mut reached = HashMap::from([((0, 0), 0)]);
    let mut waiting = VecDeque::from([(0, 0)]);
    while let Some((row, column)) = waiting.pop_front() {
        if squares
            .get(row)
            .and_then(|line| line.get(column))
            .map_or(true, |&c| c == '#')
        {
            continue;
        }
        let steps = reached[&(row, column)];
        if (row, column) == goal {
            return Some(steps);
        }
        for next in [
            (row + 1, column),
            (row, column + 1),
            (row.wrapping_sub(1), column),
            (row, column.wrapping_sub(1)),
        ] {
            if !reached.contains_key(&next) && next.0 < squares.len() {
                reached.insert(next, steps + 1);
                waiting.push_back(next);
            }
        }
    }
    None
}

/// Returns the size of the lake that contains a square: all water that can be reached over water, by row or column.
///
/// Water is `~`. A square that is not water, or not on the map, belongs to no lake of any size.
// inputs: map in made of "~" "~~" "." of length 0..=4, row in 0..=3, column in 0..=3
// edges: (["~~.", ".~.", "~.~"], 0, 0); (["~"], 1, 0); (["~."], 0, 1)
// edges: (["~.~", "~.~", "~~~"], 0, 0); (["~~~", "..~", "~~~"], 0, 0); (["~", "~"], 0, 0); (["~~"], 0, 1)
// edges: (["~", "~"], 1, 0)
fn lake_size(map: &[String], row: usize, column: usize) -> usize {
    let mut squares: Vec<Vec<char>> = map.iter().map(|line| line.chars().collect()).collect();
    let mut waiting = vec![(row, column)];
    let mut size = 0;
    while let Some((row, column)) = waiting.pop() {
        match squares.get_mut(row).and_then(|line| line.get_mut(column)) {
            Some(square) if *square == '~' => *square = '.',
            _ => continue,
        }
        size += 1;
        waiting.push((row + 1, column));
        waiting.push((row, column + 1));
        waiting.push((row.wrapping_sub(1), column));
        waiting.push((row, column.wrapping_sub(1)));
    }
    size
}

/// Tells whether a list of tasks can be finished when each pair names a task and one that must be done before it.
///
/// Tasks have the numbers from 0 to `count - 1`. Tasks that wait for each other in a circle are never done.
// inputs: count in 4..=5, pairs in 0..=3 of length 0..=4
// edges: (3, [(0, 1), (1, 2)]); (2, [(0, 1), (1, 0)]); (1, []); (2, [(1, 1)])
// equivalent: for _ in 0..=count
fn can_be_finished(count: usize, pairs: &[(usize, usize)]) -> bool {
    let mut done = vec![false; count];
    for _ in 0..count {
        for task in 0..count {
            done[task] = pairs
                .iter()
                .all(|&(later, earlier)| later != task || done[earlier]);
        }
    }
    done.into_iter().all(|is_done| is_done)
}

/// Returns a fraction as a continued one: its whole part, that of what remains turned upside down, and so on.
///
/// The fraction is `above` over `below`; with `below` at zero the list is empty.
// inputs: above in 0..=60, below in 0..=25
// edges: (45, 16); (3, 0); (0, 4); (1, 3)
fn continued_fraction(above: u64, below: u64) -> Vec<u64> {
    let (mut above, mut below) = (above, below);
    let mut parts = Vec::new();
    while below != 0 {
        parts.push(above / below);
        (above, below) = (below, above % below);
    }
    parts
}

/// Returns all numbers of so many binary digits in an order in which each differs from the next in one digit.
///
/// The order is the usual one: the list for one digit less, followed by the same list backwards with the new, highest
/// digit set. Without digits there is only zero.
// inputs: digits in 0..=5
fn gray_codes(digits: u32) -> Vec<u32> {
    let mut codes = vec![0];
    for digit in 0..digits {
        let mirrored: Vec<u32> = codes.iter().rev().map(|code| code | 1 << digit).collect();
        codes.extend(mirrored);
    }
    codes
}

/// Returns a picture turned by a quarter to the right; all its rows are equally long.
// inputs: picture in rectangular 0..=9 of length 0..=4
// equivalent: picture.last()
fn turned_right(picture: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let width = picture.first().map_or(0, Vec::len);
    (0..width)
        .map(|column| picture.iter().rev().map(|row| row[column]).collect())
        .collect()
}

/// Breaks a text into lines of at most `width` characters between words; a longer word has a line of its own.
///
/// Words are separated by white space, and in a line by one space.
// inputs: text in made of "a " "word " "to " "longest " "it ", width in 1..=12
// edges: ("to be or not", 5); ("to be or not", 6); ("", 4); ("longest a", 3)
fn broken_into_lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Writes a number from 0 to 99 in English words, such as `seven` or `forty-two`; larger ones have no words here.
// inputs: n in 0..=110
// edges: 0; 10; 11; 12; 13; 15; 18; 19; 20; 21; 30; 40; 50; 58; 60; 76; 80; 99; 100; 70; 90
// equivalent: 19..=99; 21..=99 => Some; 20..99 if; 20..=98 if; 20..=100
fn in_words(n: u8) -> Option<String> {
    let small = "zero one two three four five six seven eight nine ten eleven twelve thirteen \
                 fourteen fifteen sixteen seventeen eighteen nineteen";
    let tens = "twenty thirty forty fifty sixty seventy eighty ninety";
    let word = |words: &str, place: u8| words.split(' ').nth(place.into()).map(String::from);
    match n {
        0..=19 => word(small, n),
        20..=99 if n % 10 == 0 => word(tens, n / 10 - 2),
        20..=99 => Some(word(tens, n / 10 - 2)? + "-" + &word(small, n % 10)?),
        _ => None,
    }
}

/// Splits a line at its commas, except for those between double quotes; the quotes themselves are left out.
// inputs: line in made of "a" "b c" "," "\"" "\"x,y\""
// edges: ""; "a,b"; "\"a,b\",c"; "a,,b"; "\"\""
fn fields_of(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().unwrap().push(letter),
        }
    }
    fields
}

/// Fills in a letter: each name in curly braces is replaced by its value, or by nothing if it has none.
///
/// A brace that is never closed stays in the text with all that follows it.
// inputs: letter in made of "Dear {name}" ", " "{day}" "{" "}" "x", values in one of "name" "day" with words
fn filled_in(letter: &str, values: &HashMap<String, String>) -> String {
    let mut text = String::new();
    let mut rest = letter;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        match after.split_once('}') {
            Some((name, behind)) => {
                text.push_str(values.get(name).map_or("", String::as_str));
                rest = behind;
            }
            None => {
                text.push('{');
                rest = after;
                break;
            }
        }
    }
    text + rest
}

/// Reads what follows the question mark in an address: names and values with `=` between, separated by `&`.
///
/// A part without `=` is a name with an empty value; empty parts are skipped.
// inputs: query in made of "a" "b" "=" "&" "12"
// edges: "q=rust&page=2"; "a&&b="; ""; "a=b=c"
fn query_parts(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (name.to_string(), value.to_string())
        })
        .collect()
}

/// Returns the words that occur most often with their counts, at most `most` of them.
///
/// Frequent words come first; words that are equally frequent follow the alphabet.
// inputs: text in made of "sun " "moon " "star " "sky ", most in 0..=4
// edges: ("b a b c", 2); ("c b a", 2); ("", 1)
fn frequent_words(text: &str, most: usize) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    let mut sorted: Vec<(String, usize)> = counts
        .into_iter()
        .map(|(word, count)| (word.to_string(), count))
        .collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1));
    sorted.truncate(most);
    sorted
}

/// Returns who remains when people in a circle, numbered from 1, count and every `step`-th leaves until one is left.
///
/// Counting starts at number 1, and goes on behind who left. Without people, or with a step of 0, nobody remains.
// inputs: people in 0..=12, step in 0..=5
// edges: (7, 3); (1, 2); (0, 2); (4, 0); (5, 1)
// equivalent: 1..=people
fn last_in_circle(people: u32, step: u32) -> Option<u32> {
    if people == 0 || step == 0 {
        return None;
    }
    let mut place = 0;
    for size in 2..=people {
        place = (place + step) % size;
    }
    Some(place + 1)
}

/// Returns the text that is on the screen after somebody typed; `<` deletes the character before it, if there is one.
// inputs: typed in made of "a" "b" "<" "ß" "<"
// edges: "ab<c"; "<a"; "ab<<<c"
fn text_on_screen(typed: &str) -> String {
    let mut screen = String::new();
    for key in typed.chars() {
        if key == '<' {
            screen.pop();
        } else {
            screen.push(key);
        }
    }
    screen
}

/// Returns the length of the longest part of a text, without a gap, in which no character occurs twice.
// inputs: text in made of "a" "b" "c" "d" "é"
// edges: "abcab"; "abba"; "aa"; ""
fn longest_without_repeat(text: &str) -> usize {
    let letters: Vec<char> = text.chars().collect();
    let mut longest = 0;
    let mut start = 0;
    for (end, letter) in letters.iter().enumerate() {
        while letters[start..end].contains(letter) {
            start += 1;
        }
        longest = longest.max(end + 1 - start);
    }
    longest
}

/// Returns for each tree the height of the nearest tree to its right that is higher, if there is one.
// inputs: heights in 0..=9
// edges: [2, 5, 3, 4, 9]; [3, 3]; [4, 1]
fn next_higher(heights: &[u32]) -> Vec<Option<u32>> {
    heights
        .iter()
        .enumerate()
        .map(|(place, height)| {
            heights[place..]
                .iter()
                .copied()
                .find(|other| other > height)
        })
        .collect()
}

/// Returns how much rain stays between walls of certain heights and a width of one, when it has rained for long.
///
/// Water runs off at both ends.
// inputs: walls in 0..=5
// edges: [2, 0, 2]; [3, 1, 2]; [0, 3, 0, 2, 0]; [1, 2, 3]
// equivalent: 1..walls.len(); unwrap_or(1)
fn rain_between(walls: &[u32]) -> u32 {
    let mut water = 0;
    for place in 0..walls.len() {
        let left = walls[..=place].iter().max().copied().unwrap_or(0);
        let right = walls[place..].iter().max().copied().unwrap_or(0);
        water += left.min(right) - walls[place];
    }
    water
}

/// Tells whether one word becomes the other by one change: a letter replaced, added or removed. Equal words need none.
// inputs: one in made of "a" "b" "c", other in made of "a" "b" "c"
// edges: ("car", "cat"); ("car", "cart"); ("cart", "cat"); ("car", "car"); ("car", "dog"); ("ab", "ba"); ("", "a")
// edges: ("", "")
// edges: ("abcb", "acb")
fn one_change_apart(one: &str, other: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let front = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[front..], &other[front..]);
    let back = one
        .iter()
        .rev()
        .zip(other.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    one.len().max(other.len()) - back == 1
}

/// Returns the sums that can be made of some of the weights, or of none, each once, from small to large.
// inputs: weights in 0..=9 of length 0..=4
fn possible_weights(weights: &[u32]) -> Vec<u32> {
    let mut sums = vec![0];
    for weight in weights {
        let heavier: Vec<u32> = sums.iter().map(|sum| sum + weight).collect();
        sums.extend(heavier);
    }
    sums.sort_unstable();
    sums.dedup();
    sums
}

/// Tells whether the numbers can be divided into two groups of the same sum; a group may be empty.
// inputs: numbers in 0..=6 of length 0..=5
// edges: [1, 5, 6]; [1, 2]; []; [3]; [2, 2, 3, 5]
fn can_be_halved(numbers: &[u32]) -> bool {
    let total: u32 = numbers.iter().sum();
    let mut sums = vec![0];
    for number in numbers {
        let larger: Vec<u32> = sums.iter().map(|sum| sum + number).collect();
        sums.extend(larger);
    }
    sums.iter().any(|sum| sum * 2 == total)
}

/// Returns the arrangement of digits that is the next larger number made of the same digits, if there is one.
// inputs: digits in 0..=4 of length 0..=5
// edges: [1, 2, 3]; [3, 2, 1]; [1, 3, 2]; [2, 3, 1, 1]; []; [1, 2, 1]
fn next_arrangement(digits: &[u8]) -> Option<Vec<u8>> {
    let mut digits = digits.to_vec();
    let place = (1..digits.len())
        .rev()
        .find(|&place| digits[place - 1] < digits[place])?;
    let partner = (place..digits.len())
        .rev()
        .find(|&other| digits[other] > digits[place - 1])?;
    digits.swap(place - 1, partner);
    digits[place..].reverse();
    Some(digits)
}

/// Tells whether the sums of all rows, all columns and both diagonals of a square of numbers are the same.
///
/// A table that is not square, or has no numbers, is not magic.
// inputs: square in rectangular 1..=2 of length 0..=3
// edges: [[2, 7, 6], [9, 5, 1], [4, 3, 8]]; [[1, 1], [1, 1]]; [[1, 2], [2, 1]]; []; [[5]]; [[1, 2]]
// edges: [[2, 7, 6], [9, 5, 1], [4, 8, 3]]; [[1, 2, 3], [2, 2, 2], [3, 2, 1]]; [[1, 3, 2], [3, 2, 1], [2, 1, 3]]
// edges: [[3, 1, 2], [1, 2, 3], [2, 3, 1]]; [[1, 2, 1], [2, 1, 1], [1, 1, 2]]
// edges: [[1], [1, 2]]; [[2, 2, 2], [1, 1, 1], [3, 3, 3]]; [[2, 1, 3], [2, 1, 3], [2, 1, 3]]
// equivalent: (1..size).all
fn is_magic_square(square: &[Vec<i32>]) -> bool {
    let size = square.len();
    if size == 0 || square.iter().any(|row| row.len() != size) {
        return false;
    }
    let wanted: i32 = square[0].iter().sum();
    let falling: i32 = (0..size).map(|place| square[place][place]).sum();
    let rising: i32 = (0..size).map(|place| square[place][size - 1 - place]).sum();
    falling == wanted
        && rising == wanted
        && square.iter().all(|row| row.iter().sum::<i32>() == wanted)
        && (0..size).all(|column| square.iter().map(|row| row[column]).sum::<i32>() == wanted)
}

/// Returns the places, as row and column, of numbers that none in their row exceeds, and none in their column is below.
// inputs: table in rectangular 0..=4 of length 0..=3
// edges: [[9, 8, 7], [5, 3, 2], [6, 6, 7]]; [[1, 1], [1, 1]]
fn saddle_places(table: &[Vec<u32>]) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (row, numbers) in table.iter().enumerate() {
        for (column, number) in numbers.iter().enumerate() {
            let is_largest = numbers.iter().all(|other| other <= number);
            if is_largest && table.iter().all(|others| others[column] >= *number) {
                places.push((row, column));
            }
        }
    }
    places
}

/// Reads a colour such as `#ff8000` as its red, green and blue parts of two hexadecimal digits each.
// inputs: text in one of "#{10..=99}{10..=99}{10..=99}" "#0f{10..=99}A0" "{100..=999}000" "#{10..=99}" "#{10..=99}11g0"
// edges: "#ff7f01"; "#FF7F01"; "#12345"; "#1234567"; ""; "#+1+2+3"
fn colour_parts(text: &str) -> Option<(u8, u8, u8)> {
    let digits = text.strip_prefix('#')?;
    if digits.len() != 6 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let part = |from: usize| u8::from_str_radix(&digits[from..from + 2], 16).ok();
    Some((part(0)?, part(2)?, part(4)?))
}

/// Returns the number of a day in its year, counted from 1, if there is such a day.
///
/// Months have the numbers 1 to 12. In leap years the second month has 29 days instead of 28.
// inputs: day in 0..=32, month in 0..=13
// edges: (1, 1, false); (29, 2, true); (29, 2, false); (31, 12, false); (31, 12, true); (31, 4, false); (1, 3, true)
// edges: (0, 5, true); (1, 13, true); (1, 0, false)
// edges: (32, 12, true)
fn day_of_year(day: u32, month: usize, leap: bool) -> Option<u32> {
    let february = if leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(month.checked_sub(1)?)?;
    if day == 0 || day > length {
        return None;
    }
    Some(lengths[..month - 1].iter().sum::<u32>() + day)
}

/// Returns the states of lamps after so many rounds; a lamp is on next if exactly one of its neighbours is on now.
///
/// The lamps stand in a row. Those at the ends have one neighbour only, and that one decides.
// inputs: lamps of length 0..=6, rounds in 0..=4
// edges: ([true, false, false, false], 1); ([true], 1); ([], 2)
fn lamps_after(lamps: &[bool], rounds: u32) -> Vec<bool> {
    let mut now = lamps.to_vec();
    for _ in 0..rounds {
        let on = |place: usize| now.get(place).copied().unwrap_or(false);
        now = (0..now.len())
            .map(|place| on(place.wrapping_sub(1)) != on(place + 1))
            .collect();
    }
    now
}

/// Returns when the last of several customers is served by so many clerks, if all come at once and keep their order.
///
/// Each customer needs a certain time, and goes to the clerk who is free first. Without a clerk nobody is served.
// inputs: times in 0..=9, clerks in 0..=3
// edges: ([5, 3, 4], 2); ([2, 2], 3); ([], 1); ([1], 0)
fn time_until_served(times: &[u32], clerks: usize) -> Option<u32> {
    let mut free_at = vec![0; clerks];
    for time in times {
        *free_at.iter_mut().min()? += time;
    }
    free_at.into_iter().max()
}

/// Returns the row of so many numbers in which each is the sum of the two above it, which starts and ends with 1.
///
/// The first row is a single 1; a row without numbers is empty.
// inputs: size in 0..=14
fn triangle_row(size: usize) -> Vec<u64> {
    let mut row = Vec::new();
    for _ in 0..size {
        row.push(1);
        for place in (1..row.len() - 1).rev() {
            row[place] += row[place - 1];
        }
    }
    row
}

/// Returns the floors at which a lift stops, in order: it goes up to all calls above it first, then down to the others.
///
/// Each floor is visited once; a call from the lift's own floor comes first, without a move.
// inputs: start in 0..=6, calls in 0..=6
// edges: (3, [5, 1, 4, 2]); (2, [2]); (0, [])
fn lift_stops(start: u8, calls: &[u8]) -> Vec<u8> {
    let mut stops: Vec<u8> = calls
        .iter()
        .copied()
        .filter(|&floor| floor >= start)
        .collect();
    stops.sort_unstable();
    let mut below: Vec<u8> = calls
        .iter()
        .copied()
        .filter(|&floor| floor < start)
        .collect();
    below.sort_unstable_by(|a, b| b.cmp(a));
    stops.extend(below);
    stops.dedup();
    stops
}

/// Returns the first place at which a list can be cut in two parts of equal sums; either part may be empty.
// inputs: numbers in -3..=4
// edges: [1, 2, 3]; [1, 2, 4]; []; [2, -2]
fn balanced_cut(numbers: &[i32]) -> Option<usize> {
    let total: i32 = numbers.iter().sum();
    let mut left = 0;
    for place in 0..=numbers.len() {
        if left * 2 == total {
            return Some(place);
        }
        left += numbers.get(place)?;
    }
    None
}

/// Tells whether every quote of a text is closed: single quotes and double quotes, neither within the other kind.
///
/// Between double quotes a single quote is a mere character, and the other way round.
// inputs: text in made of "'" "\"" "a" " "
// edges: "'a'"; "\"it's\""; "'\"'"; "\"'\"'"; ""
fn quotes_are_closed(text: &str) -> bool {
    let mut open = None;
    for letter in text.chars() {
        if open == Some(letter) {
            open = None;
        } else if open.is_none() && (letter == '\'' || letter == '"') {
            open = Some(letter);
        }
    }
    open.is_none()
}

/// Returns the smallest number of neighbours in a row that hold at least `kinds` different values, if the row does.
// inputs: shelf in 1..=4, kinds in 0..=4
// edges: ([1, 1, 2, 3, 1], 3); ([1, 2], 3); ([], 0); ([5], 1); ([1, 2, 1], 3)
fn shortest_varied_stretch(shelf: &[u8], kinds: usize) -> Option<usize> {
    for size in 0..=shelf.len() {
        for start in 0..=shelf.len() - size {
            let mut values = shelf[start..start + size].to_vec();
            values.sort_unstable();
            values.dedup();
            if values.len() >= kinds {
                return Some(size);
            }
        }
    }
    None
}

/// Returns how many minutes a parking place was free in a day of `open` minutes, given when cars came and left.
///
/// Stays may overlap, since the place is wide; what lies after the end of the day does not count.
// inputs: open in 0..=15, stays in sorted 0..=20 of length 0..=5
// edges: (10, [(2, 4), (3, 7)]); (5, []); (5, [(0, 9)]); (8, [(1, 2), (4, 5)])
fn free_minutes(open: u32, stays: &[(u32, u32)]) -> usize {
    (0..open)
        .filter(|minute| stays.iter().all(|(from, to)| minute < from || minute >= to))
        .count()
}

/// Returns the steps of a knitting pattern, in which `3(k p) k` means `k p` three times and then `k`.
///
/// A pattern is a text of single letters, of spaces, which do nothing, and of numbers of one digit, each before letters
/// in round brackets, which do not contain brackets. A number is at least 1.
// inputs: pattern in made of "k" "p" " " "{1..=4}(k)" "{1..=3}(pk p)" "2()"
// edges: "2(k p)p"; ""; "k"; "2(kp)3(p)"; "9(k)"
// equivalent: times = 0
fn knitted(pattern: &str) -> String {
    let mut steps = String::new();
    let mut group = String::new();
    let mut times = 1;
    for symbol in pattern.chars() {
        match symbol {
            '1'..='9' => times = symbol as usize - '0' as usize,
            '(' | ' ' => {}
            ')' => {
                steps += &group.repeat(times);
                group.clear();
                times = 1;
            }
            letter if times > 1 => group.push(letter),
            letter => steps.push(letter),
        }
    }
    steps
}

/// Returns the shortest text that starts with `head`, ends with `tail`, and lets them overlap as far as they agree.
// inputs: head in made of "a" "b" "c" of length 0..=5, tail in made of "a" "b" "c" of length 0..=5
// edges: ("abc", "bcd"); ("abc", "abc"); ("ab", "cd"); ("", "x"); ("aab", "aba"); ("abab", "abab")
// equivalent: 0..head.len()
fn overlapped(head: &str, tail: &str) -> String {
    let start = (0..=head.len()).find(|&start| tail.starts_with(&head[start..]));
    head[..start.unwrap_or(head.len())].to_string() + tail
}

/// Returns the lengths of the bars of a code: how many equal cells follow each other, in order, beginning with white.
///
/// A cell is true if it is black. If the first one is black, the list begins with 0; without cells it is empty.
// inputs: cells of length 0..=7
// edges: [true, true, false]; [false]; [true]; []
fn bar_lengths(cells: &[bool]) -> Vec<u32> {
    let mut lengths = Vec::new();
    let mut black = false;
    for &cell in cells {
        if lengths.is_empty() {
            lengths.push(0);
        }
        if cell != black {
            lengths.push(0);
            black = cell;
        }
        if let Some(last) = lengths.last_mut() {
            *last += 1;
        }
    }
    lengths
}
