//! Level 3: two ideas at once, such as sorting and then taking, or reading and then adding.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Returns the length of the longest stretch of days on which the level rose from each day to the next.
///
/// A single day is a stretch of length 1.
// inputs: levels in 0..=6
// edges: []; [4]; [1, 2, 2, 3, 4]; [3, 2, 1]
// equivalent: current = 1
fn longest_climb(levels: &[u32]) -> usize {
    let mut longest = 0;
    let mut current = 0;
    let mut previous = None;
    for &level in levels {
        current = match previous {
            Some(before) if level > before => current + 1,
            _ => 1,
        };
        longest = longest.max(current);
        previous = Some(level);
    }
    longest
}

/// Returns the places of all peaks: heights above both of their neighbours.
// inputs: heights in 0..=5
// edges: [1, 2, 1]; [1, 2, 2, 1]; [0, 3, 0, 4, 0]; [5, 1]
// equivalent: max(2)
fn peaks(heights: &[i32]) -> Vec<usize> {
    let mut found = Vec::new();
    for place in 1..heights.len().max(1) - 1 {
        if heights[place] > heights[place - 1] && heights[place] > heights[place + 1] {
            found.push(place);
        }
    }
    found
}

/// Returns the greatest loss between a day's price and that of a later day, 0 if no later price is lower.
// inputs: prices in -20..=20
// edges: [3, 9, 4, 7, 1]; [1, 2, 3]
fn worst_loss(prices: &[i32]) -> i32 {
    let mut highest = i32::MIN;
    let mut worst = 0;
    for &price in prices {
        highest = highest.max(price);
        worst = worst.max(highest - price);
    }
    worst
}

/// Returns the character that occurs most often in a text; of several, the smallest one.
// inputs: text in made of "a" "b" "c" "x"
// edges: "abba"; "baa"; "bbaac"
// equivalent: or_insert(1); += 2
fn favourite_character(text: &str) -> Option<char> {
    let mut counts = BTreeMap::new();
    for letter in text.chars() {
        *counts.entry(letter).or_insert(0) += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|&(_, count)| count == most)
        .map(|(letter, _)| letter)
}

/// Reads a setting such as `depth = 12`: a name, the sign `=`, and a whole number, with or without spaces around.
///
/// The name must not be empty.
// inputs: line in one of "size={0..=99}" " x = {-9..=9} " "={0..=9}" "width" "a=b" "k={0..=9}=" ""
fn read_setting(line: &str) -> Option<(String, i32)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    if name.is_empty() {
        return None;
    }
    Some((name.to_string(), value.trim().parse().ok()?))
}

/// Reads a time of day such as `7:05` as minutes since midnight; there are 24 hours of 60 minutes.
// inputs: text in one of "{0..=29}:{10..=69}" "{0..=23}:0{0..=9}" "{0..=9}" "a:{0..=9}" "-{1..=9}:{0..=9}" ""
// edges: "23:59"; "24:00"; "0:60"; "0:00"
fn minutes_since_midnight(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let hours: u32 = hours.parse().ok()?;
    let minutes: u32 = minutes.parse().ok()?;
    if hours < 24 && minutes < 60 {
        Some(hours * 60 + minutes)
    } else {
        None
    }
}

/// Returns the sum of the whole numbers in a list that is separated by semicolons; what is no number is skipped.
// inputs: list in made of "{-99..=99}" ";" ";" "x" " "
// edges: " 3;4 "; "5;x;-7"; ""
fn sum_of_list(list: &str) -> i64 {
    list.split(';')
        .filter_map(|part| part.trim().parse::<i64>().ok())
        .sum()
}

/// Returns the words that start with a capital letter, each of them once, in order of the alphabet.
// inputs: text in made of "Paris " "Oslo " "in " "Rome " "and "
fn names_in(text: &str) -> Vec<String> {
    let mut names: Vec<String> = text
        .split_whitespace()
        .filter(|word| word.starts_with(char::is_uppercase))
        .map(String::from)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Returns each word with its first letter as a capital and the others small, one space between the words.
// inputs: title in made of "the " "OLD" " " "man" "Éa"
fn as_title(title: &str) -> String {
    let words: Vec<String> = title
        .split_whitespace()
        .map(|word| {
            let mut letters = word.chars();
            match letters.next() {
                Some(first) => first.to_uppercase().to_string() + &letters.as_str().to_lowercase(),
                None => String::new(),
            }
        })
        .collect();
    words.join(" ")
}

/// Returns the guests of the first party who were not at the second one, sorted, each once.
// inputs: first in one of "ann" "bob" "cy" "dee", second in one of "ann" "bob" "cy" "dee" of length 0..=3
fn missing_guests(first: &[&str], second: &[&str]) -> Vec<String> {
    let mut missing: Vec<String> = first
        .iter()
        .filter(|guest| !second.contains(guest))
        .map(|guest| guest.to_string())
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

/// Returns how many letters two words have in common at their beginnings.
// inputs: one in made of "a" "b" "é", other in made of "a" "b" "é"
// edges: ("car", "cat"); ("", "cat"); ("ab", "ab"); ("bab", "aab"); ("abba", "abc"); ("aé", "aéb")
// edges: ("abab", "abab"); ("b", "ba")
fn shared_beginning(one: &str, other: &str) -> usize {
    one.chars()
        .zip(other.chars())
        .take_while(|(a, b)| a == b)
        .count()
}

/// Merges two queues, each sorted from small to large, into a sorted one.
// inputs: one in sorted -9..=9, other in sorted -9..=9
fn merge_queues(one: &[i32], other: &[i32]) -> Vec<i32> {
    let mut merged = [one, other].concat();
    merged.sort_unstable();
    merged
}

/// Returns the seats after each guest has moved on by so many places; who leaves the end sits down at the front.
// inputs: places in 0..=12
// edges: (["a", "b", "c"], 1); (["a", "b", "c"], 4); ([], 3)
fn moved_on(guests: &[String], places: usize) -> Vec<String> {
    let mut seats = guests.to_vec();
    if !seats.is_empty() {
        let steps = places % seats.len();
        seats.rotate_right(steps);
    }
    seats
}

/// Returns the sums of groups of so many neighbours; the last group may be smaller, and a size of 0 has no groups.
// inputs: numbers in -9..=9, size in 0..=4
// edges: ([1, 2, 3, 4, 5], 2); ([1, 2], 0)
fn sums_of_groups(numbers: &[i32], size: usize) -> Vec<i32> {
    if size == 0 {
        return Vec::new();
    }
    numbers
        .chunks(size)
        .map(|group| group.iter().sum())
        .collect()
}

/// Returns the sum of each column of a table whose rows may have different lengths.
// inputs: rows in -9..=9 of length 0..=4
fn column_totals(rows: &[Vec<i32>]) -> Vec<i32> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut totals = vec![0; width];
    for row in rows {
        for (total, number) in totals.iter_mut().zip(row) {
            *total += number;
        }
    }
    totals
}

/// Returns the sum of the numbers on the diagonal from the top left corner, as far as it goes.
// inputs: table in rectangular -9..=9 of length 0..=4
fn diagonal_total(table: &[Vec<i64>]) -> i64 {
    table
        .iter()
        .enumerate()
        .filter_map(|(place, row)| row.get(place))
        .sum()
}

/// Returns how often a new record was set: a result better than all before it; the first one is none.
// inputs: results in 0..=9
// edges: [3, 5, 5, 4, 9]; [1]; []
fn records_broken(results: &[u32]) -> usize {
    let mut best = match results.first() {
        Some(&first) => first,
        None => return 0,
    };
    let mut records = 0;
    for &result in results {
        if result > best {
            records += 1;
            best = result;
        }
    }
    records
}

/// Returns the rank of each runner by time: one more than the number of faster runners.
// inputs: times in 50..=58
fn ranks(times: &[u32]) -> Vec<usize> {
    times
        .iter()
        .map(|time| 1 + times.iter().filter(|other| *other < time).count())
        .collect()
}

/// Returns the sum of the two smallest numbers of a list, if it has two.
// inputs: numbers in -99..=99
fn sum_of_smallest_two(numbers: &[i32]) -> Option<i32> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    Some(sorted.first()? + sorted.get(1)?)
}

/// Returns the three best scores from high to low, fewer if there are fewer.
// inputs: scores in 0..=50
fn podium(scores: &[u32]) -> Vec<u32> {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.truncate(3);
    sorted
}

/// Returns the words sorted by their last letters; words with equal ones stay in order, empty words come first.
// inputs: words in one of "stone" "tree" "lamp" "map" "" "a" "era" "kiwi"
fn sorted_by_ending(words: &[&str]) -> Vec<String> {
    let mut sorted: Vec<String> = words.iter().map(|word| word.to_string()).collect();
    sorted.sort_by_key(|word| word.chars().last());
    sorted
}

/// Returns how often each of the dice values 1 to 6 was thrown; other values count for nothing.
// inputs: throws in 0..=7
fn dice_counts(throws: &[usize]) -> [usize; 6] {
    let mut counts = [0; 6];
    for &throw in throws {
        if (1..=6).contains(&throw) {
            counts[throw - 1] += 1;
        }
    }
    counts
}

/// Returns a text in which each small letter is replaced by its mirror in the alphabet: `a` by `z`, `b` by `y`.
// inputs: text in made of "a" "m" "n" "z" "A" "!" "é"
fn mirrored_letters(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_lowercase() {
                (b'a' + b'z' - c as u8) as char
            } else {
                c
            }
        })
        .collect()
}

/// Returns a name such as `maxLineWidth` in small letters, with a dash before each capital that does not begin it.
// inputs: name in made of "max" "Line" "W" "e"
fn dashed_name(name: &str) -> String {
    let mut dashed = String::new();
    for (place, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && place > 0 {
            dashed.push('-');
        }
        dashed.push(letter.to_ascii_lowercase());
    }
    dashed
}

/// Returns a header's name such as `content-type` with a capital at the start of each of its parts.
// inputs: name in made of "content" "type" "-" "X"
fn header_name(name: &str) -> String {
    let mut at_start = true;
    let mut result = String::new();
    for letter in name.chars() {
        result.push(if at_start {
            letter.to_ascii_uppercase()
        } else {
            letter
        });
        at_start = letter == '-';
    }
    result
}

/// Returns a text in which no character stands behind an equal one, the repeated ones left out.
// inputs: text in made of "a" "b" "o" "é"
// edges: "aabbba"; ""; "abab"
fn without_echoes(text: &str) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    letters.dedup();
    letters.into_iter().collect()
}

/// Returns the digits of a number in base three, as text without leading zeros; zero is `0`.
// inputs: n in 0..=300
fn in_base_three(n: u32) -> String {
    let mut digits = Vec::new();
    let mut rest = n;
    while rest > 0 {
        digits.push(char::from(b'0' + (rest % 3) as u8));
        rest /= 3;
    }
    if digits.is_empty() {
        digits.push('0');
    }
    digits.iter().rev().collect()
}

/// Returns the option that more than half of the votes name, if there is one.
// inputs: votes in 1..=3
// edges: [1, 2, 1]; [1, 2]; [2, 2, 1, 3]
fn clear_winner(votes: &[u8]) -> Option<u8> {
    for &vote in votes {
        if votes.iter().filter(|&&other| other == vote).count() * 2 > votes.len() {
            return Some(vote);
        }
    }
    None
}

/// Returns how many pairs of places hold numbers whose difference is exactly `gap`, which is not negative.
// inputs: numbers in -6..=6, gap in 0..=4
fn pairs_apart(numbers: &[i32], gap: i32) -> usize {
    let mut pairs = 0;
    for (place, first) in numbers.iter().enumerate() {
        for second in &numbers[place + 1..] {
            if (first - second).abs() == gap {
                pairs += 1;
            }
        }
    }
    pairs
}

/// Returns the smallest number from 1 on that is not the number of a taken seat.
// inputs: taken in 0..=6
// edges: []; [1, 2, 3]; [2, 3]; [3, 1]
fn first_free_seat(taken: &[u32]) -> u32 {
    let mut seat = 1;
    while taken.contains(&seat) {
        seat += 1;
    }
    seat
}

/// Deals items alternately from two decks; when one is used up, the rest of the other follows.
// inputs: left in 1..=9 of length 0..=5, right in 11..=19 of length 0..=5
// equivalent: 0..=left
fn dealt_in_turn(left: &[u8], right: &[u8]) -> Vec<u8> {
    let mut dealt = Vec::new();
    for place in 0..left.len().max(right.len()) {
        dealt.extend(left.get(place));
        dealt.extend(right.get(place));
    }
    dealt
}

/// Returns the candidate with the most votes; of several, the one who received a vote first.
// inputs: votes in one of "red" "green" "blue"
// edges: ["green", "red", "red", "green"]; []
fn most_voted(votes: &[&str]) -> Option<String> {
    let mut best: Option<(&str, usize)> = None;
    for &vote in votes {
        let count = votes.iter().filter(|&&other| other == vote).count();
        if best.map_or(true, |(_, most)| count > most) {
            best = Some((vote, count));
        }
    }
    best.map(|(name, _)| name.to_string())
}

/// Returns the stock after a list of orders: true adds so many pieces, false takes them, but never more than there are.
// inputs: orders in 0..=20
fn stock_after(orders: &[(bool, u32)]) -> u32 {
    let mut stock: u32 = 0;
    for &(arrives, pieces) in orders {
        stock = if arrives {
            stock + pieces
        } else {
            stock.saturating_sub(pieces)
        };
    }
    stock
}

/// Returns the total of times in minutes and seconds, with less than 60 seconds.
// inputs: laps in 0..=99
fn total_time(laps: &[(u32, u32)]) -> (u32, u32) {
    let seconds: u32 = laps
        .iter()
        .map(|(minutes, seconds)| minutes * 60 + seconds)
        .sum();
    (seconds / 60, seconds % 60)
}

/// Returns how few coins of 10, 5, 2 and 1 make up an amount.
// inputs: amount in 0..=99
fn coins_for(amount: u32) -> u32 {
    let mut rest = amount;
    let mut coins = 0;
    for value in [10, 5, 2, 1] {
        coins += rest / value;
        rest %= value;
    }
    coins
}

/// Tells whether one version such as `1.10.2` is newer than another one; its numbers count from the left.
// inputs: one in one of "{0..=2}.{8..=11}" "1.{0..=2}.{0..=2}" "{0..=2}"
// inputs: other in one of "{0..=2}.{8..=11}" "1.{0..=2}.{0..=2}" "{0..=2}"
// edges: ("1.10", "1.9"); ("1.0", "1"); ("1.2.3", "1.2.3"); ("0.9", "1.0")
fn is_newer(one: &str, other: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        version
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    numbers(one) > numbers(other)
}

/// Tells whether a user's name is allowed: 3 to 8 small letters or digits, the first a letter.
// inputs: name in made of "a" "x" "7" "_" "B" "abc"
// edges: "abc"; "ab"; "abcdefgh"; "abcdefghi"; "1abc"; "ab_c"; "a12"
fn is_allowed_name(name: &str) -> bool {
    (3..=8).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// Returns the mean of the marks without the best and the worst one, if there are more than two.
// inputs: marks in 0..=10
// edges: [1.0, 2.0, 6.0]; [1.0, 2.0]; [4.0, 4.0, 8.0, 0.0]
fn fair_mean(marks: &[f64]) -> Option<f64> {
    if marks.len() < 3 {
        return None;
    }
    let mut sorted = marks.to_vec();
    sorted.sort_by(f64::total_cmp);
    let kept = &sorted[1..sorted.len() - 1];
    Some(kept.iter().sum::<f64>() / kept.len() as f64)
}

/// Returns each inner number replaced by the mean of itself and its two neighbours, rounded towards zero.
///
/// The first and the last one stay as they are.
// inputs: signal in -30..=30
// equivalent: max(2)
fn smoothed(signal: &[i32]) -> Vec<i32> {
    let mut result = signal.to_vec();
    for place in 1..signal.len().max(1) - 1 {
        result[place] = (signal[place - 1] + signal[place] + signal[place + 1]) / 3;
    }
    result
}

/// Returns a number with the ending that it has as an English ordinal: `st`, `nd`, `rd` or `th`.
// inputs: n in 0..=130
// edges: 1; 2; 3; 4; 11; 12; 13; 21; 102; 111; 113; 123
fn ordinal(n: u32) -> String {
    let ending = match (n % 10, n % 100) {
        (1, 11) | (2, 12) | (3, 13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
}

/// Tells whether each word but the first begins with the letter with which the word before it ends.
// inputs: words in one of "ab" "ba" "aa" "bb" "" of length 0..=3
// edges: ["lamp", "pot", "tea"]; ["lamp", "tea"]; ["lamp"]; ["ab", "bb", "ab"]
fn is_word_chain(words: &[&str]) -> bool {
    words
        .windows(2)
        .all(|pair| pair[0].chars().last() == pair[1].chars().next())
}

/// Returns the largest gain from buying on one day and selling on a later one, if there are two days.
///
/// The gain is negative if prices only fall.
// inputs: prices in 0..=30
// edges: [7, 4, 2]; [3, 9, 1, 6]; [5]
fn best_trade(prices: &[i32]) -> Option<i32> {
    let mut lowest = *prices.first()?;
    let mut best = None;
    for &price in &prices[1..] {
        best = best.max(Some(price - lowest));
        lowest = lowest.min(price);
    }
    best
}

/// Returns the total price of a basket; what has no price in the list is free.
// inputs: basket in one of "tea" "milk" "bread" "salt", prices in one of "tea" "milk" "bread" with 1..=9
fn basket_price(basket: &[String], prices: &HashMap<String, u32>) -> u32 {
    basket.iter().filter_map(|item| prices.get(item)).sum()
}

/// Tells whether two lists have the same members, however often and in whatever order.
// inputs: one in 1..=3 of length 0..=4, other in 1..=3 of length 0..=4
// edges: ([1, 2, 2], [2, 1]); ([1], [2]); ([], [])
fn same_members(one: &[u8], other: &[u8]) -> bool {
    let one: HashSet<u8> = one.iter().copied().collect();
    let other: HashSet<u8> = other.iter().copied().collect();
    one == other
}

/// Returns the numbers of the table row by row, the rows with even places forwards and the others backwards.
// inputs: table in rectangular 0..=9 of length 0..=4
fn ploughed(table: &[Vec<u8>]) -> Vec<u8> {
    let mut path = Vec::new();
    for (place, row) in table.iter().enumerate() {
        if place % 2 == 0 {
            path.extend(row);
        } else {
            path.extend(row.iter().rev());
        }
    }
    path
}

/// Returns the longest distance in places between two equal numbers, if any two are equal.
// inputs: numbers in 0..=5
// edges: [1, 2, 3]; [4, 4]; [1, 2, 1, 2]; []
fn widest_repeat(numbers: &[u16]) -> Option<usize> {
    numbers
        .iter()
        .enumerate()
        .filter_map(|(first, number)| {
            let last = numbers.iter().rposition(|other| other == number)?;
            if last > first {
                Some(last - first)
            } else {
                None
            }
        })
        .max()
}
