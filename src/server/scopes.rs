//! What a token may do: everything, or only some actions on some kinds of resource.
//!
//! A scope is `all`, `application_connect`, one of the composites below, `resource:action`, or `resource:*`.

use std::fmt;

/// An action on a kind of resource, such as `("workspace", "ssh")`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action(pub(crate) &'static str, pub(crate) &'static str);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// The scope of a token that can do what its user can.
const ALL: &str = "coder:all";

/// Kinds of resource and what can be done to them.
const RESOURCES: &[(&str, &[&str])] = &[
    ("api_key", &["create", "read", "update", "delete"]),
    ("file", &["create", "read"]),
    ("organization", &["create", "read", "update", "delete"]),
    ("task", &["create", "read", "update", "delete"]),
    ("template", &["create", "read", "update", "delete", "use", "view_insights"]),
    ("user", &["create", "read", "update", "delete", "read_personal", "update_personal"]),
    ("user_secret", &["create", "read", "update", "delete"]),
    (
        "workspace",
        &[
            "create",
            "read",
            "update",
            "delete",
            "start",
            "stop",
            "ssh",
            "application_connect",
            "share",
            "create_agent",
            "delete_agent",
        ],
    ),
];

/// Names for several scopes together.
const COMPOSITES: &[(&str, &[&str])] = &[
    ("coder:application_connect", &["workspace:application_connect"]),
    ("coder:workspaces.create", &["template:read", "template:use", "workspace:create", "workspace:update", "workspace:read"]),
    ("coder:workspaces.operate", &["template:read", "workspace:read", "workspace:update", "workspace:start", "workspace:stop"]),
    ("coder:workspaces.delete", &["template:read", "template:use", "workspace:read", "workspace:delete"]),
    ("coder:workspaces.access", &["template:read", "workspace:read", "workspace:ssh", "workspace:application_connect"]),
    ("coder:apikeys.manage_self", &["api_key:read", "api_key:create", "api_key:update", "api_key:delete"]),
];

/// The scopes of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scopes(Vec<String>);

/// A word that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no known scope")]
pub(crate) struct UnknownScope(String);

impl Default for Scopes {
    fn default() -> Self {
        Self(vec![ALL.to_owned()])
    }
}

impl Scopes {
    /// Reads the words of a request; none at all means everything.
    pub(crate) fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownScope> {
        let mut scopes = Vec::new();
        for word in words {
            let scope = match word {
                "all" => ALL,
                "application_connect" => "coder:application_connect",
                other => other,
            };
            if !is_known(scope) {
                return Err(UnknownScope(word.chars().take(64).collect()));
            }
            if !scopes.iter().any(|known| known == scope) {
                scopes.push(scope.to_owned());
            }
        }
        if scopes.is_empty() { Ok(Self::default()) } else { Ok(Self(scopes)) }
    }

    /// The store's form.
    pub(crate) fn stored(&self) -> String {
        self.0.join(" ")
    }

    /// Reads the store's form. What it does not know grants nothing.
    pub(crate) fn from_stored(text: &str) -> Self {
        Self(text.split(' ').map(str::to_owned).collect())
    }

    /// The words that the API shows.
    pub(crate) fn words(&self) -> &[String] {
        &self.0
    }

    /// The one word that older clients read.
    pub(crate) fn old_word(&self) -> &str {
        match self.0.first().map(String::as_str) {
            Some(ALL) => "all",
            Some("coder:application_connect") => "application_connect",
            Some(other) => other,
            None => "",
        }
    }

    /// Whether everything is granted.
    pub(crate) fn is_all(&self) -> bool {
        self.0.iter().any(|scope| scope == ALL)
    }

    /// Whether this action is granted.
    pub(crate) fn grants(&self, action: Action) -> bool {
        self.is_all() || self.0.iter().any(|scope| scope_grants(scope, action))
    }

    /// Whether all that `other` grants is granted: nobody makes a token that can do more than its own.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.is_all() || (!other.is_all() && actions().filter(|a| other.grants(*a)).all(|a| self.grants(a)))
    }
}

fn actions() -> impl Iterator<Item = Action> {
    RESOURCES.iter().flat_map(|(resource, actions)| actions.iter().map(|action| Action(resource, action)))
}

fn is_known(scope: &str) -> bool {
    scope == ALL
        || COMPOSITES.iter().any(|(name, _)| *name == scope)
        || actions().any(|action| scope == action.to_string())
        || RESOURCES.iter().any(|(resource, _)| scope.strip_prefix(resource) == Some(":*"))
}

fn scope_grants(scope: &str, action: Action) -> bool {
    if let Some((_, parts)) = COMPOSITES.iter().find(|(name, _)| *name == scope) {
        return parts.iter().any(|part| scope_grants(part, action));
    }
    scope.split_once(':').is_some_and(|(resource, word)| resource == action.0 && (word == "*" || word == action.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSH: Action = Action("workspace", "ssh");
    const READ: Action = Action("workspace", "read");

    fn scopes(words: &[&str]) -> Scopes {
        Scopes::read(words.iter().copied()).unwrap()
    }

    #[test]
    fn a_scope_grants_its_actions_and_no_others() {
        for (words, ssh, read) in [
            (&[][..], true, true),
            (&["all"], true, true),
            (&["workspace:*"], true, true),
            (&["coder:workspaces.access"], true, true),
            (&["workspace:ssh"], true, false),
            (&["workspace:read", "user:read_personal"], false, true),
            (&["application_connect"], false, false),
            (&["template:*", "api_key:read"], false, false),
        ] {
            assert_eq!((scopes(words).grants(SSH), scopes(words).grants(READ)), (ssh, read), "{words:?}");
        }
    }

    #[test]
    fn unknown_words_are_refused_and_unknown_stored_ones_grant_nothing() {
        for bad in ["", "workspace", "workspace:", "workspace:fly", "*:*", "*", "Workspace:read", "workspace:read "] {
            assert!(Scopes::read([bad]).is_err(), "{bad:?}");
        }
        assert!(!Scopes::from_stored("workspace:fly *:*").grants(READ));
        assert!(!Scopes::from_stored("").grants(READ));
        let kept = scopes(&["all", "workspace:ssh", "all"]);
        assert_eq!((Scopes::from_stored(&kept.stored()), kept.words().len()), (kept.clone(), 2));
    }

    #[test]
    fn every_part_of_a_composite_is_a_scope() {
        for (name, parts) in COMPOSITES {
            assert!(parts.iter().all(|part| is_known(part)), "{name}");
        }
    }

    #[test]
    fn a_token_contains_only_what_it_can_do_itself() {
        let access = scopes(&["coder:workspaces.access"]);
        assert!(access.contains(&scopes(&["workspace:ssh", "workspace:read"])));
        assert!(!access.contains(&scopes(&["workspace:*"])) && !access.contains(&Scopes::default()));
        assert!(Scopes::default().contains(&Scopes::default()));
        assert!(scopes(&["api_key:*"]).contains(&scopes(&["coder:apikeys.manage_self"])));
    }
}
