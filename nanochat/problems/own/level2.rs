//! Level 2: one loop, or one chain of iterators, over a list, a text or a range.

/// Returns how often a letter occurs in a text.
// inputs: text in made of "a" "b" "ä" " ", letter in one of "a" "b" "ä"
// edges: ("abba", 'a'); ("abab b", 'b'); ("ä", 'ä')
fn times_in_text(text: &str, letter: char) -> usize {
    text.chars().filter(|&c| c == letter).count()
}

/// Returns how many digits 0 are in the decimal form of a number.
// edges: 0; 10; 100100; 205
fn zeros_in(n: u32) -> u32 {
    let mut rest = n;
    let mut zeros = 0;
    loop {
        if rest % 10 == 0 {
            zeros += 1;
        }
        rest /= 10;
        if rest == 0 {
            return zeros;
        }
    }
}

/// Returns how often a number can be halved before it is odd; zero cannot be.
// edges: 0; 1; 2; 48; 1024
fn halvings(n: u64) -> u32 {
    let mut rest = n;
    let mut count = 0;
    while rest != 0 && rest % 2 == 0 {
        rest /= 2;
        count += 1;
    }
    count
}

/// Returns the first letters of the words, in their order; words without a letter are passed over.
// inputs: words in words
fn first_letters(words: &[&str]) -> String {
    words
        .iter()
        .filter_map(|word| word.chars().next())
        .collect()
}

/// Returns the size of each word in bytes.
fn word_sizes(words: &[&str]) -> Vec<usize> {
    words.iter().map(|word| word.len()).collect()
}

/// Returns the squares of 1, 2, 3 and so on, as long as they are at most `limit`.
// inputs: limit in 0..=150
// edges: 0; 1; 3; 4; 25; 24
fn squares_within(limit: u32) -> Vec<u32> {
    (1..)
        .map(|n| n * n)
        .take_while(|&square| square <= limit)
        .collect()
}

/// Returns the digits 0 to 9 that occur in a text, in their order.
// inputs: text in one of "{0..=99}-{0..=9}a" "no. {0..=999}" "" "abc" "0{0..=99}0"
fn digits_only(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_digit()).collect()
}

/// Returns a text without its spaces.
fn without_spaces(text: &str) -> String {
    text.chars().filter(|&c| c != ' ').collect()
}

/// Returns the characters of a text with a dash between each two.
// inputs: text in made of "a" "b" "ß" "-"
fn dashed(text: &str) -> String {
    let mut result = String::new();
    for (place, letter) in text.chars().enumerate() {
        if place > 0 {
            result.push('-');
        }
        result.push(letter);
    }
    result
}

/// Returns the first number minus the second plus the third minus the fourth, and so on.
// inputs: numbers in -99..=99
fn alternating_sum(numbers: &[i32]) -> i32 {
    let mut sum = 0;
    for (place, number) in numbers.iter().enumerate() {
        if place % 2 == 0 {
            sum += number;
        } else {
            sum -= number;
        }
    }
    sum
}

/// Returns the sums of each two neighbours in a list.
// inputs: numbers in -99..=99
fn sums_of_neighbours(numbers: &[i32]) -> Vec<i32> {
    numbers.windows(2).map(|pair| pair[0] + pair[1]).collect()
}

/// Returns by how much each number exceeds the one before it.
// inputs: heights in -99..=99
fn climbs(heights: &[i64]) -> Vec<i64> {
    heights.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Returns the first place, counted from zero, at which a word stands in a list.
// inputs: words in one of "ash" "elm" "oak" "yew", word in one of "ash" "elm" "oak" "yew"
fn place_of(words: &[&str], word: &str) -> Option<usize> {
    words.iter().position(|&other| other == word)
}

/// Returns the last place, counted from zero, at which a number stands in a list.
// inputs: numbers in 0..=4, number in 0..=4
fn last_place_of(numbers: &[u8], number: u8) -> Option<usize> {
    numbers.iter().rposition(|&other| other == number)
}

/// Returns the shortest of the names, the first of them if several are.
// inputs: names in words
// edges: ["bo", "al"]; ["ada", "bo", "al"]; []
fn shortest_name(names: &[String]) -> Option<String> {
    names.iter().min_by_key(|name| name.len()).cloned()
}

/// Returns how many lines of a text are not empty.
// inputs: text in made of "\n" "one" "two" " "
fn filled_lines(text: &str) -> usize {
    text.lines().filter(|line| !line.is_empty()).count()
}

/// Returns how many words a text has; white space separates them.
// inputs: text in made of " " "to" "be" "\n"
fn word_count(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Returns as many stars as a password has characters.
fn hidden(password: &str) -> String {
    password.chars().map(|_| '*').collect()
}

/// Returns the first, third, fifth, and so on, of the players.
// inputs: players in words
fn every_second(players: &[String]) -> Vec<String> {
    players.iter().step_by(2).cloned().collect()
}

/// Returns the sum of the products of amounts and prices at the same places; what has no partner is left out.
// inputs: amounts in 0..=20, prices in 0..=20
fn bill_total(amounts: &[u32], prices: &[u32]) -> u32 {
    amounts
        .iter()
        .zip(prices)
        .map(|(amount, price)| amount * price)
        .sum()
}

/// Returns at how many places two answers agree, compared as far as both go.
// inputs: given in made of "A" "B" "C", right in made of "A" "B" "C"
fn right_answers(given: &str, right: &str) -> usize {
    given
        .chars()
        .zip(right.chars())
        .filter(|(a, b)| a == b)
        .count()
}

/// Returns the height of a water mark after each of the changes, from a height of zero on.
// inputs: changes in -99..=99
fn water_marks(changes: &[i32]) -> Vec<i32> {
    let mut height = 0;
    let mut marks = Vec::new();
    for change in changes {
        height += change;
        marks.push(height);
    }
    marks
}

/// Returns the first powers of two, so many of them, beginning with 1.
// inputs: count in 0..=20
fn powers_of_two(count: u32) -> Vec<u64> {
    (0..count).map(|exponent| 1 << exponent).collect()
}

/// Returns the numbers from `start` down to 1.
// inputs: start in 0..=20
fn countdown(start: u8) -> Vec<u8> {
    (1..=start).rev().collect()
}

/// Returns the first multiples of a number, so many of them, beginning with the number itself.
// inputs: number in -12..=12, count in 0..=9
fn times_table(number: i32, count: i32) -> Vec<i32> {
    (1..=count).map(|factor| factor * number).collect()
}

/// Tells whether a character stands directly behind an equal one.
// inputs: text in made of "a" "b" "c" "é"
// edges: ""; "a"; "aa"; "aba"; "bcc"
fn has_twins(text: &str) -> bool {
    let letters: Vec<char> = text.chars().collect();
    letters.windows(2).any(|pair| pair[0] == pair[1])
}

/// Tells whether a text is made of capital ASCII letters only, or of nothing.
// inputs: text in made of "A" "Q" "Z" "É" "q"
// edges: ""; "ABC"; "AbC"; "A C"; "ZZ"
fn is_all_capitals(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_uppercase())
}

/// Returns the mean of the temperatures, if there are any.
// inputs: temperatures in -40..=40
// edges: [1.0, 2.0]; []
fn mean_temperature(temperatures: &[f64]) -> Option<f64> {
    if temperatures.is_empty() {
        return None;
    }
    let sum: f64 = temperatures.iter().sum();
    Some(sum / temperatures.len() as f64)
}

/// Returns how many of the prices do not exceed the money at hand.
// inputs: prices in 0..=20, money in 0..=20
// edges: ([5, 6, 7], 6)
fn affordable(prices: &[u32], money: u32) -> usize {
    prices.iter().filter(|&&price| price <= money).count()
}

/// Returns the members of all the teams in one list.
fn all_members(teams: &[Vec<u16>]) -> Vec<u16> {
    teams.iter().flatten().copied().collect()
}

/// Returns the numbers as text, with a comma and a space between each two.
// inputs: numbers in -99..=99
fn comma_separated(numbers: &[i32]) -> String {
    let texts: Vec<String> = numbers.iter().map(|number| number.to_string()).collect();
    texts.join(", ")
}

/// Returns each letter so many times in a row, in the order of the letters.
// inputs: letters in 'a'..='e' of length 0..=4, times in 0..=3
fn stretched(letters: &[char], times: usize) -> String {
    letters
        .iter()
        .map(|letter| letter.to_string().repeat(times))
        .collect()
}

/// Returns the codes of the characters of a text.
// inputs: text in made of "a" "Z" "~" "ü" "字" of length 0..=5
fn character_codes(text: &str) -> Vec<u32> {
    text.chars().map(|c| c as u32).collect()
}

/// Returns the number whose binary digits are given, the highest first.
// inputs: bits of length 0..=10
fn from_bits(bits: &[bool]) -> u32 {
    bits.iter().fold(0, |number, &bit| number * 2 + bit as u32)
}

/// Returns how many switches are on.
fn switches_on(switches: &[bool]) -> usize {
    switches.iter().filter(|&&on| on).count()
}

/// Returns the size in bytes of the longest line, 0 if there is none.
// inputs: lines in made of "a" "bc" "ß"
fn widest_line(lines: &[&str]) -> usize {
    lines.iter().map(|line| line.len()).max().unwrap_or(0)
}

/// Returns the numbers with each negative one replaced by zero.
// inputs: numbers in -9..=9
// equivalent: number < 1; number <= 0
fn without_debts(numbers: &[i32]) -> Vec<i32> {
    numbers
        .iter()
        .map(|&number| if number < 0 { 0 } else { number })
        .collect()
}

/// Returns the first number that is greater than the length of the list it is in, if there is one.
// inputs: numbers in 0..=9
fn first_above_length(numbers: &[usize]) -> Option<usize> {
    numbers
        .iter()
        .copied()
        .find(|&number| number > numbers.len())
}

/// Returns the numbers before the first zero, or all if there is none.
// inputs: numbers in -2..=2
fn before_zero(numbers: &[i8]) -> Vec<i8> {
    numbers
        .iter()
        .copied()
        .take_while(|&number| number != 0)
        .collect()
}

/// Returns a list of digits without the zeros at its front.
// inputs: digits in 0..=2
// edges: [0, 0, 7, 0]; [0]; [1, 0]
fn without_leading_zeros(digits: &[u8]) -> Vec<u8> {
    digits
        .iter()
        .copied()
        .skip_while(|&digit| digit == 0)
        .collect()
}

/// Returns the sum of the donations that were made.
// inputs: donations in 0..=500
fn donated(donations: &[Option<u32>]) -> u32 {
    donations.iter().flatten().sum()
}

/// Returns all of the votes, or nothing if one of them is missing.
// inputs: votes of length 0..=4
// edges: [Some(1), Some(2)]; [Some(1), None]; []
fn complete_votes(votes: &[Option<u8>]) -> Option<Vec<u8>> {
    votes.iter().copied().collect()
}

/// Returns the negative numbers and the others, each in the order in which they were.
// inputs: numbers in -9..=9
// edges: [0, -1, 1]
fn split_by_sign(numbers: &[i16]) -> (Vec<i16>, Vec<i16>) {
    numbers.iter().partition(|&&number| number < 0)
}

/// Returns each line behind its number, which counts from 1, and a colon.
// inputs: lines in words of length 0..=4
fn numbered(lines: &[&str]) -> Vec<String> {
    lines
        .iter()
        .enumerate()
        .map(|(place, line)| format!("{}: {line}", place + 1))
        .collect()
}

/// Returns the largest of the remainders after division by 10, nothing for no numbers.
// inputs: numbers in 0..=999
fn largest_last_digit(numbers: &[u32]) -> Option<u32> {
    numbers.iter().map(|number| number % 10).max()
}

/// Returns the sum of the points that a player has, by the player's name; unknown names have none.
// inputs: rounds in one of "ann" "bob" "cy", name in one of "ann" "bob" "cy"
fn points_of(rounds: &[(String, i32)], name: &str) -> i64 {
    let mut points = 0;
    for (player, won) in rounds {
        if player == name {
            points += i64::from(*won);
        }
    }
    points
}
