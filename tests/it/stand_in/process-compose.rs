//! A stand-in for process-compose, which no registry of the tests has: it reads the configuration and the flags that
//! the product uses, starts and stops processes as process-compose's documentation says, and refuses all else.
//!
//! One file and the standard library: it is compiled by itself, static, to run in a root that has no libraries.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn kill(process: i32, number: i32) -> i32;
}

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOPPED.store(true, Ordering::SeqCst);
}

fn fail(text: &str) -> ! {
    eprintln!("FTL {text}");
    exit(1)
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["up", "-f", config, "-u", socket, "-L", log, "--disable-dotenv", "--tui=false"] => {
            fs::write(log, "INF Process Compose stand-in\n").unwrap_or_else(|error| fail(&error.to_string()));
            up(config, socket)
        }
        ["process", "list", "-u", socket] => match UnixStream::connect(socket) {
            Ok(mut server) => {
                let mut names = String::new();
                server.read_to_string(&mut names).unwrap();
                print!("{names}");
            }
            Err(error) => fail(&format!("failed to list processes: {error}")),
        },
        other => fail(&format!("unknown arguments: {other:?}")),
    }
}

fn up(config: &str, socket: &str) {
    let text = fs::read_to_string(config).unwrap_or_else(|error| fail(&format!("{config}: {error}")));
    let project = Json::parse(&text);
    if project.get("disable_env_expansion") != Some(&Json::Bool(true)) {
        fail("variables in commands would be expanded");
    }
    let shell = ["shell_command", "shell_argument"].map(|key| project.at("shell").at(key).text().to_owned());
    if UnixStream::connect(socket).is_ok() {
        fail(&format!("unix socket {socket} is already in use"));
    }
    let _ = fs::remove_file(socket);
    unsafe {
        for number in [SIGHUP, SIGINT, SIGTERM] {
            signal(number, stop);
        }
    }
    let Json::Table(processes) = project.at("processes") else { fail("processes is no table") };
    let names: String = processes.keys().map(|name| format!("{name}\n")).collect();
    let listener = UnixListener::bind(socket).unwrap_or_else(|error| fail(&format!("{socket}: {error}")));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), names.as_bytes());
        }
    });
    let mut running: Vec<Process> = processes.iter().map(|(name, config)| Process::start(name, config, &shell)).collect();
    while !STOPPED.load(Ordering::SeqCst) && running.iter_mut().any(|process| !process.is_done()) {
        thread::sleep(Duration::from_millis(10));
    }
    running.into_iter().for_each(|process| process.stop(&shell));
    let _ = fs::remove_file(socket);
}

struct Process {
    child: Child,
    daemon: bool,
    environment: Vec<(String, String)>,
    shutdown: Option<String>,
    output: Vec<JoinHandle<()>>,
}

impl Process {
    fn start(name: &str, config: &Json, shell: &[String; 2]) -> Self {
        let command = config.at("command").text();
        if config.get("is_template_disabled") != Some(&Json::Bool(true)) && command.contains("{{") {
            fail(&format!("{name}: a template"));
        }
        let mut environment = vec![("PC_PROC_NAME".to_owned(), name.to_owned())];
        if let Some(Json::List(variables)) = config.get("environment") {
            let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            environment.extend(variables.iter().filter_map(|variable| pair(variable.text())));
        }
        let mut child = Command::new(&shell[0])
            .arg(&shell[1])
            .arg(command)
            .envs(environment.clone())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| fail(&format!("{name}: {error}")));
        let lines: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let output = lines.into_iter().map(|lines| {
            let name = name.to_owned();
            thread::spawn(move || {
                BufReader::new(lines).lines().map_while(Result::ok).for_each(|line| println!("[{name}\t] {line}"));
            })
        });
        Self {
            output: output.collect(),
            child,
            daemon: config.get("is_daemon") == Some(&Json::Bool(true)),
            environment,
            shutdown: config.get("shutdown").map(|shutdown| shutdown.at("command").text().to_owned()),
        }
    }

    /// A daemon runs until it is stopped.
    fn is_done(&mut self) -> bool {
        !self.daemon && self.child.try_wait().unwrap().is_some()
    }

    fn stop(mut self, shell: &[String; 2]) {
        if !self.is_done() {
            let group = -i32::try_from(self.child.id()).unwrap();
            match &self.shutdown {
                Some(command) => {
                    let mut shutdown = Command::new(&shell[0]);
                    shutdown.arg(&shell[1]).arg(command).envs(self.environment.clone()).stdin(Stdio::null());
                    let _ = shutdown.status();
                }
                None => unsafe {
                    kill(group, SIGTERM);
                },
            }
            let end = Instant::now() + Duration::from_secs(10);
            while self.child.try_wait().unwrap().is_none() {
                if Instant::now() > end {
                    unsafe { kill(group, SIGKILL) };
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        if !self.daemon {
            self.output.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }
}

#[derive(Debug, PartialEq)]
enum Json {
    Text(String),
    Bool(bool),
    List(Vec<Json>),
    Table(BTreeMap<String, Json>),
}

impl Json {
    fn parse(text: &str) -> Self {
        let mut rest = text.chars().peekable();
        let value = parse_value(&mut rest);
        assert!(rest.all(char::is_whitespace), "text behind the configuration");
        value
    }

    fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(table) => table.get(key),
            _ => None,
        }
    }

    fn at(&self, key: &str) -> &Self {
        self.get(key).unwrap_or_else(|| fail(&format!("the key {key} is missing")))
    }

    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => fail(&format!("no string: {other:?}")),
        }
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn next(rest: &mut Chars<'_>) -> char {
    rest.find(|c| !c.is_whitespace()).unwrap_or_else(|| fail("the configuration breaks off"))
}

fn parse_value(rest: &mut Chars<'_>) -> Json {
    match next(rest) {
        '"' => Json::Text(parse_string(rest)),
        '{' => Json::Table(parse_members(rest, '}', |rest| {
            assert_eq!(next(rest), '"');
            let name = parse_string(rest);
            assert_eq!(next(rest), ':');
            (name, parse_value(rest))
        })),
        '[' => Json::List(parse_members(rest, ']', parse_value)),
        first @ ('t' | 'f') => {
            let word = if first == 't' { "rue" } else { "alse" };
            assert!(word.chars().all(|c| rest.next() == Some(c)));
            Json::Bool(first == 't')
        }
        other => fail(&format!("unexpected {other:?} in the configuration")),
    }
}

fn parse_members<T, C: Default + Extend<T>>(
    rest: &mut Chars<'_>,
    end: char,
    member: impl Fn(&mut Chars<'_>) -> T,
) -> C {
    let mut members = C::default();
    while rest.next_if(|c| c.is_whitespace()).is_some() {}
    if rest.next_if_eq(&end).is_some() {
        return members;
    }
    loop {
        members.extend([member(rest)]);
        match next(rest) {
            ',' => {}
            c if c == end => return members,
            other => fail(&format!("unexpected {other:?} in the configuration")),
        }
    }
}

fn parse_string(rest: &mut Chars<'_>) -> String {
    let mut text = String::new();
    loop {
        match rest.next().unwrap_or_else(|| fail("a string does not end")) {
            '"' => return text,
            '\\' => text.push(match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('u') => {
                    let digits: String = rest.take(4).collect();
                    u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or_else(|| fail("a bad escape"))
                }
                Some(other) => other,
                None => fail("a string does not end"),
            }),
            other => text.push(other),
        }
    }
}
