//! Nobody sends a token to a stranger with a bundle.

use serde_json::Value;

/// What stands in the place of a secret.
const HIDDEN: &str = "***";
/// Keys whose text may be a secret: tokens, and scripts, which often hold some.
const TEXTS: [&str; 6] = ["token", "auth_token", "session_token", "api_key", "password", "script"];
/// Keys of variables: an object, or a list of names and values.
const VARIABLES: [&str; 3] = ["env", "environment", "environment_variables"];

/// Takes the secrets out of a document.
pub(super) fn hide(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.to_ascii_lowercase();
                if VARIABLES.contains(&key.as_str()) {
                    hide_values(value);
                } else if TEXTS.contains(&key.as_str()) {
                    hide_texts(value);
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(hide),
        _ => {}
    }
}

/// Hides what the names of a document stand for.
pub(super) fn hide_values(document: &mut Value) {
    match document {
        Value::Object(named) => named.iter_mut().filter(|(key, _)| *key != "name").for_each(|(_, value)| hide_texts(value)),
        Value::Array(list) => list.iter_mut().for_each(hide_values),
        other => hide_texts(other),
    }
}

fn hide_texts(value: &mut Value) {
    match value {
        Value::String(text) if !text.is_empty() => HIDDEN.clone_into(text),
        Value::Array(list) => list.iter_mut().for_each(hide_texts),
        Value::Object(fields) => fields.values_mut().for_each(hide_texts),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_values_of_variables_and_scripts_are_hidden_wherever_they_stand_and_nothing_else() {
        let mut document = json!({
            "name": "dev",
            "agents": [{
                "auth_token": "s3cret", "Token": "s3cret", "api_key": "", "status": "connected",
                "environment_variables": { "A": "s3cret", "B": "" },
                "env": [{ "name": "A", "value": "s3cret" }],
                "scripts": [{ "script": "curl -H s3cret", "log_path": "x.log" }],
            }],
        });
        hide(&mut document);
        assert_eq!(
            document,
            json!({
                "name": "dev",
                "agents": [{
                    "auth_token": HIDDEN, "Token": HIDDEN, "api_key": "", "status": "connected",
                    "environment_variables": { "A": HIDDEN, "B": "" },
                    "env": [{ "name": "A", "value": HIDDEN }],
                    "scripts": [{ "script": HIDDEN, "log_path": "x.log" }],
                }],
            })
        );
        let mut parameters = json!([{ "name": "region", "value": "s3cret" }]);
        hide_values(&mut parameters);
        assert_eq!(parameters, json!([{ "name": "region", "value": HIDDEN }]));
    }
}
